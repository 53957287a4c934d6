"""Packed runs in repositories of the Hugging Face hub, by its own library: ``pip install s2vfast[hub]``.

A repository holds ``model.safetensors``, which is what `s2vfast pack` writes, and the card as its ``README.md``.
Tokens, the cache, mirrors (``HF_ENDPOINT``) and working offline (``HF_HUB_OFFLINE``) are the library's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2vfast import errors
from s2vfast.train import packed

SCHEME = "hf://"
FILE = "model.safetensors"
FRONT_MATTER = "---\nlibrary_name: s2vfast\ntags:\n- skeleton\n- action-recognition\n---\n"
"""What the hub sorts repositories by; a card on the hub begins with it."""
_NAME = r"[A-Za-z0-9][\w.-]*"


def push(file: str | Path, repository: str, private: bool = False) -> str:
    """Upload a packed run, and its card, in one commit; the repository is made where it is missing.

    Args:
        file: of `s2vfast pack`.
        repository: ``OWNER/NAME``.
        private: of a repository that is made.

    Returns:
        The address that `fetch` takes.

    Raises:
        ConfigError: no such name.
        CheckpointError: no packed run; the library is missing, the hub cannot be reached or refuses.
    """
    name, _ = parse(SCHEME + repository)
    card = packed.read(file).card.replace(f"FILE{packed.SUFFIX}", SCHEME + name)
    with _in_one_line(SCHEME + name) as library:
        api = library.HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)  # None: as the owner has set it
        contents = {FILE: Path(file).read_bytes(), "README.md": (FRONT_MATTER + card).encode()}
        operations = [library.CommitOperationAdd(path, content) for path, content in contents.items()]
        api.create_commit(name, operations, commit_message="A run, by s2vfast pack")
    return SCHEME + name


def fetch(address: str) -> Path:
    """The packed run of a repository, in the library's cache; what is there already is not fetched again.

    Args:
        address: ``hf://OWNER/NAME``, or ``hf://OWNER/NAME@REVISION`` with a branch, a tag or a commit.

    Raises:
        ConfigError: no such address.
        CheckpointError: no such repository, or none with a packed run; the library is missing, the hub cannot be
            reached and the file is not in the cache.
    """
    name, revision = parse(address)
    with _in_one_line(address) as library:
        return Path(library.HfApi().hf_hub_download(name, FILE, revision=revision))


def parse(address: str) -> tuple[str, str | None]:
    """(``OWNER/NAME``, revision) of an address.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(rf"{SCHEME}({_NAME}/{_NAME})(?:@([^@\s]+))?", address)
    if match is None:
        raise errors.ConfigError(
            f"{address}: no address of a repository; hf://OWNER/NAME or hf://OWNER/NAME@REVISION is"
        )
    return match[1], match[2]


@contextlib.contextmanager
def _in_one_line(address: str) -> Iterator[Any]:
    """The library; what it raises within the block becomes one line that says what to do."""
    try:
        import huggingface_hub as library
        from huggingface_hub import errors as hub_errors
    except ImportError:
        raise errors.CheckpointError(f"{address}: needs huggingface_hub; pip install s2vfast[hub]") from None
    # OSError, and what the HTTP library below raises: versions of huggingface_hub differ in which that is.
    transport: tuple[type[BaseException], ...] = hub_errors.HfHubHTTPError.__bases__
    try:
        yield library
    except hub_errors.GatedRepoError as error:
        raise errors.CheckpointError(
            f"{address}: its owner asks readers to accept terms, on the page of the repository"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise errors.CheckpointError(
            f"{address}: no such repository, or a private one; `hf auth login` makes the hub know you"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise errors.CheckpointError(f"{address}: the repository has no such revision") from error
    except hub_errors.RemoteEntryNotFoundError as error:
        raise errors.CheckpointError(
            f"{address}: holds no {FILE}; the repository was not made by `s2vfast pack RUN --push OWNER/NAME`"
        ) from error
    except hub_errors.LocalEntryNotFoundError as error:
        raise errors.CheckpointError(
            f"{address}: not in the cache, and the hub cannot be reached; go online once"
        ) from error
    except hub_errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = "; `hf auth login` with a token that may write" if status in (401, 403) else ""
        message = error.server_message or str(error).splitlines()[0]
        raise errors.CheckpointError(f"{address}: the hub answers {status}: {message}{advice}") from error
    except ValueError as error:  # a name or a card that the library does not take
        raise errors.CheckpointError(f"{address}: {error}") from error
    except transport as error:
        raise errors.CheckpointError(f"{address}: the hub cannot be reached: {error}") from error
