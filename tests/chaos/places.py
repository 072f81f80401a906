"""Where a run under test is stored: on a disk, or in an object store."""

import shutil
from pathlib import Path

import pyarrow.fs as pafs

from tests.object_store import Store
from training.run_store import RunStore


class OnDisk:
    """A run in `folder`/`name`."""

    def __init__(self, folder: Path, name: str):
        self.storage, self._run = str(folder), folder / name

    @property
    def working(self) -> Path:
        """The folder on which the program and its controller work."""
        return self._run

    def brought(self) -> Path:
        """All that is stored of the run, in a folder."""
        return self._run

    def replace(self, name: str, data: bytes) -> None:
        """Change a stored file."""
        (self._run / name).write_bytes(data)

    def delete(self) -> None:
        """All that is stored of the run."""
        shutil.rmtree(self._run)


class InStore:
    """A run in an object store. `aside`: a folder for copies of it."""

    def __init__(self, store: Store, name: str, aside: Path):
        self.storage, self._name, self._store, self._aside = store.uri("runs"), name, store, aside
        endpoint = store.direct.removeprefix("http://")
        self._files = pafs.S3FileSystem(
            endpoint_override=endpoint, scheme="http", access_key="test", secret_key="test", region="us-east-1"
        )

    @property
    def working(self) -> Path:
        return RunStore(f"{self.storage}/{self._name}").folder

    def brought(self) -> Path:
        """Everything in the bucket's folder of runs is the run's, so another one's name beside it would be seen."""
        shutil.rmtree(self._aside, ignore_errors=True)
        for file in self._files.get_file_info(pafs.FileSelector(f"{self._store.bucket}/runs", recursive=True)):
            if file.type == pafs.FileType.File:
                to = self._aside / file.path.split("/", 2)[2]
                to.parent.mkdir(parents=True, exist_ok=True)
                with self._files.open_input_stream(file.path) as stream:
                    to.write_bytes(stream.read())
        return self._aside / self._name

    def replace(self, name: str, data: bytes) -> None:
        self._store.put(f"runs/{self._name}/{name}", data)

    def delete(self) -> None:
        self._files.delete_dir_contents(f"{self._store.bucket}/runs", missing_dir_ok=True)


Place = OnDisk | InStore
