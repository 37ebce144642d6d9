"""Where weights come from: a package, the Hugging Face cache, or the Hugging Face hub. Nothing that is found
is executed."""

import socket
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit


def packaged(inside):
    """The path of 'package/file/in/it' when that package is installed, else None. The package is located,
    never imported."""
    package, _, rest = inside.partition("/")
    found = find_spec(package)
    return Path(found.submodule_search_locations[0], rest) if found else None


def host():
    """(host name, port) of the hub, which HF_ENDPOINT may move."""
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    return hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)


def answers(seconds=3.0):
    """Whether the hub accepts a connection. Its own client would retry for 46 s."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    try:
        socket.create_connection(host(), timeout=seconds).close()
    except OSError:
        return False
    return True


def cached_file(repo, names):
    """The path of the first of these files of `repo` that the Hugging Face cache holds, else None."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def fetch_file(repo, names, download=True):
    """The first of these files that `repo` holds, from the cache or else, with `download`, from the hub.
    FileNotFoundError when it is in neither, or when the hub does not answer."""
    if path := cached_file(repo, names):
        return path
    _check_reachable(repo, download)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    for name in names:
        try:
            return Path(hf_hub_download(repo, name))
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            raise FileNotFoundError(f"{repo} cannot be fetched from {host()[0]} ({error})") from None
    raise FileNotFoundError(f"{repo} on the Hugging Face hub holds none of {', '.join(names)}")


def fetch_folder(repo, download=True, **patterns):
    """The folder of `repo`, from the cache or else, with `download`, from the hub. `patterns` are
    huggingface_hub's `allow_patterns` and `ignore_patterns`. FileNotFoundError when it is in neither, or when
    the hub does not answer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True, **patterns))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    _check_reachable(repo, download)
    try:
        return Path(snapshot_download(repo, **patterns))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise FileNotFoundError(f"{repo} cannot be fetched from {host()[0]} ({error})") from None


def _check_reachable(repo, download):
    missing = f"{repo} is not in the Hugging Face cache and"
    if not download:
        raise FileNotFoundError(f"{missing} is not fetched without being asked for")
    if not answers():
        raise FileNotFoundError(f"{missing} the hub ({host()[0]}) does not answer")
