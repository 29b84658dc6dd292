"""What holds for every test."""

from collections.abc import Iterator

import pytest

from model.errors import hear_interrupts

hear_interrupts()  # what tests start is told to stop by SIGINT, also where the caller of pytest ignores it


@pytest.fixture(scope="session", autouse=True)
def dvc_by_itself(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings of the user's own; no reports and no looks for a newer version, each a process beside the test."""
    folder = tmp_path_factory.mktemp("dvc")
    (folder / "config").write_text("[core]\nanalytics = false\ncheck_update = false\n")
    with pytest.MonkeyPatch.context() as here:
        here.setenv("DVC_GLOBAL_CONFIG_DIR", str(folder))
        yield
