"""What lies in the folders of all trials of a study."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from search.storage.folder import MANIFEST, TRIALS, TrialFiles, TrialFolder, files_in
from search.storage.remote import find_store


def trial_files(study: Path) -> dict[int, TrialFiles]:
    """Return the files of all trials by their numbers, listed once where they are kept. Others may be writing them."""
    store = find_store(study)
    return dict(_by_trial(store.files(TRIALS) if store else files_in(study / TRIALS)))


def has_committed_parts(study: Path) -> bool:
    """Return whether any trial of the study, or a replicate of one, has a committed part in the folder itself."""
    return any((study / TRIALS).rglob(MANIFEST))


def drop_states(study: Path, numbers: Collection[int]) -> None:
    """Remove the training states of these trials. Lists the study once, not each of its trials."""
    store = find_store(study)
    local = dict(_by_trial(files_in(study / TRIALS)))
    listings = [local, dict(_by_trial(store.files(TRIALS)))] if store else [local]
    for number in numbers:
        states = {part for listing in listings if number in listing for part in listing[number].states}
        for part in sorted(states):
            TrialFolder(study, number).drop(part)


def _by_trial(files: Mapping[str, int]) -> Iterator[tuple[int, TrialFiles]]:
    sizes: dict[int, dict[str, int]] = {}
    for path, size in files.items():
        number, _, name = path.partition("/")
        if number.isdecimal():
            sizes.setdefault(int(number), {})[name] = size
    return ((number, TrialFiles(found)) for number, found in sizes.items())
