"""The file descriptors that a process may have open: each connection takes one."""

import sys

SPARE = 200
"""What a process needs beside its connections: libraries, logs, a database, other connections under way."""


class DescriptorsError(Exception):
    """The system doesn't let this process have as many as it needs; the message says what to do."""


def raise_limit() -> int | None:
    """Raise the soft limit of this process to the hard one. Give the limit; None where there is none to tell.

    The soft limit is kept low for programs that use `select`, which no event loop here does.
    """
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return None if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS has an "infinite" hard limit, and refuses it
        return soft
    return None if hard == resource.RLIM_INFINITY else hard


def reserve(connections: int, what: str) -> None:
    """Make sure that this process may have so many connections open at once, raising its soft limit if need be.

    Parameters:
        what: who wants them, for the message: "a storm of 10,000 WebSockets".

    Raises:
        DescriptorsError: not even with the soft limit raised to the hard one.
    """
    needed, limit = connections + SPARE, raise_limit()
    if limit is not None and limit < needed:
        raise DescriptorsError(
            f"{what} needs {needed:,} file descriptors, and this process may have {limit:,}: run "
            f"`ulimit -n {needed}` before, in the same shell (only root can go above the hard limit, `ulimit -Hn`; "
            f"systemd has LimitNOFILE=, Docker --ulimit nofile=), or ask for at most {max(0, limit - SPARE):,}"
        )
