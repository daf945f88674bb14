import pytest


@pytest.fixture
def remote(monkeypatch):
    """A server that has the archive of SBU; the downloader does not wait between its tries."""
    from awesome_pytorch_seg.data import transfer

    from awesome_remote import SBU, Remote

    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)
    remote = Remote()
    remote.files["SBU-shadow.zip"] = SBU
    yield remote
    remote.close()


@pytest.fixture
def get(remote, tmp_path, capsys):
    """Runs the downloader against `remote`."""
    from awesome_remote import runner

    return runner(remote, tmp_path, capsys)
