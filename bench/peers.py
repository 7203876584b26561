"""The peers, run by the interpreter of their own environment: one way, one measurement, one number on stdout.

python bench/peers.py first NAME URL PROMPTS     completions a second, caches empty
python bench/peers.py cached NAME URL PROMPTS    the same asked again once every answer is in the cache
"""

import asyncio
import sys
import tempfile
import time

CONCURRENCY = 64
ASKED = {"temperature": 0, "max_tokens": 384}


async def at_once(ask, texts) -> float:
    """Calls a second with CONCURRENCY calls under way."""
    left = iter(texts)

    async def work():
        for text in left:
            assert await ask(text)

    assert await ask("What is loaded at the first call is not what is measured.")
    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return len(texts) / (time.perf_counter() - started)


def one_by_one(ask, texts) -> float:
    """Calls a second, one after the other: for hits, there is nothing to wait for."""
    assert ask(texts[0])
    started = time.perf_counter()
    for text in texts:
        assert ask(text)
    return len(texts) / (time.perf_counter() - started)


def async_openai(url, folder):
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key="x", max_retries=0)

    async def ask(text):
        reply = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **ASKED)
        return reply.choices[0].message.content

    return ask, None


def litellm(url, folder):
    import litellm
    from litellm.caching.caching import Cache

    litellm.cache = Cache(type="disk", disk_cache_dir=folder)
    litellm.suppress_debug_info = True
    given = {"model": "openai/m", "api_base": url, "api_key": "x", "caching": True, **ASKED}

    async def ask(text):
        reply = await litellm.acompletion(messages=[{"role": "user", "content": text}], **given)
        return reply.choices[0].message.content

    def again(text):
        return litellm.completion(messages=[{"role": "user", "content": text}], **given).choices[0].message.content

    return ask, again


def langchain(url, folder):
    from langchain_community.cache import SQLiteCache
    from langchain_core.globals import set_llm_cache
    from langchain_openai import ChatOpenAI

    set_llm_cache(SQLiteCache(database_path=f"{folder}/langchain.db"))
    model = ChatOpenAI(model="m", base_url=url, api_key="x", max_retries=0, temperature=0, max_tokens=384)

    async def ask(text):
        return (await model.ainvoke(text)).content

    return ask, lambda text: model.invoke(text).content


def dspy(url, folder, memory=False):
    import dspy

    dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=memory, disk_cache_dir=folder)
    model = dspy.LM("openai/m", api_base=url, api_key="x", num_retries=0, **ASKED)

    async def ask(text):
        return await model.acall(text)

    return ask, model


WAYS = {
    "AsyncOpenAI": async_openai,
    "LiteLLM, disk cache": litellm,
    "LangChain, SQLiteCache": langchain,
    "DSPy, disk cache": dspy,
    "DSPy, cache in memory": lambda url, folder: dspy(url, folder, memory=True),
}


def main() -> None:
    what, name, url, count = sys.argv[1:]
    from measured import prompts

    texts = prompts(int(count))
    with tempfile.TemporaryDirectory() as folder:
        ask, again = WAYS[name](url, folder)
        if what == "first":
            print(asyncio.run(at_once(ask, texts)))
            return
        one_by_one(again, texts)
        print(one_by_one(again, texts))


if __name__ == "__main__":
    main()
