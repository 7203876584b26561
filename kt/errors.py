"""The errors a user can act on, each with the exit code that the command line returns.

KtError                     1
├── InputError              1  a record file, a prompt or an option's value is wrong: file, line or id, what to do
├── ConfigError             1  a YAML config is wrong: file, key, what to do
├── PromptError             1  a prompt file is wrong, or a record lacks a field that the prompt names
├── CacheError              1  the cache file is corrupt, locked, newer than this program, or cannot be written
├── OutputError             1  an output cannot be written: permissions, full disk
├── BackendError            1  a server cannot be reached or answers what no completion can be made of
│   ├── Unavailable         1  refused, timed out, 5xx after retries: the fallback may answer instead
│   └── Refused             1  401, 403, 404, 400: asking again or elsewhere will not help
├── BudgetError             1  the next call could pass --max-cost
├── EngineError             1  a local engine did not start, or died
├── TrainingError           1  training cannot start or go on: data, adapter, NaN loss, memory
├── MissError               3  replay found completions missing
└── OfflineError            3  --offline met an address or a model that is not on this machine
"""


class KtError(Exception):
    """Any error whose message is for the user; `exit_code` is what the process returns."""

    exit_code = 1


class InputError(KtError):
    """A record file, a prompt's record or an option's value is wrong."""


class ConfigError(KtError):
    """A config file is wrong."""


class PromptError(KtError):
    """A prompt file is wrong, or a record lacks what it names."""


class CacheError(KtError):
    """The cache file is corrupt, locked, too new, or cannot be written."""


class OutputError(KtError):
    """An output cannot be written."""


class BackendError(KtError):
    """A server cannot be reached or does not answer as an OpenAI-compatible one does."""


class Unavailable(BackendError):
    """No answer now: connection refused, time-out, 5xx after retries. A fallback may answer instead."""


class Refused(BackendError):
    """The server understood and said no (400, 401, 403, 404): nothing is gained by asking again."""


class BudgetError(KtError):
    """The next call could pass the money that the user allowed."""


class EngineError(KtError):
    """A local engine did not start, or died."""


class TrainingError(KtError):
    """Training cannot start or cannot go on."""


class MissError(KtError):
    """A replay needs completions that the cache does not hold."""

    exit_code = 3


class OfflineError(KtError):
    """Something would have left this machine under --offline."""

    exit_code = 3
