"""A folder put on the Hugging Face Hub."""

from pathlib import Path

from swjax.hub.errors import CheckpointError


def check_repository(repository: str) -> str:
    """The name, if the Hub can have a repository of it.

    Raises:
        ValueError: it has not the form owner/name.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no repository of the Hub: {error}") from error
    if repository.count("/") != 1:
        raise ValueError(f"{repository!r} is no repository of the Hub; give owner/name")
    return repository


def push_folder(folder: Path, repository: str) -> str:
    """Upload all files of a folder to a model repository, which is made, private, if it is not there.

    Args:
        folder: an exported model or adapter.
        repository: owner/name.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the Hub refuses, or is not reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repository, repo_type="model", commit_message="Written by swjax export"
        )
    except Exception as error:  # its HTTP client, whose errors pass through, is another from version to version
        raise CheckpointError(
            f"{folder} is written, but the Hub did not take it as {repository}: {error}; log in with `hf auth login`"
        ) from error
    return str(commit.commit_url)
