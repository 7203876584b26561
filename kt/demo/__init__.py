"""The generated knowledge world, its oracle, and the tiny models made for it: nothing here comes from elsewhere."""
