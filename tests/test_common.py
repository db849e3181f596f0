"""How a script ends that did not end well."""

import pytest

from launch import common


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ValueError("no such thing"), "error: no such thing", ""),
        (KeyError("no such name"), "error: no such name", ""),
    ],
)
def test_what_people_did_is_told_without_a_traceback(monkeypatch, capsys, raised, code, said):
    def main(_):
        raise raised

    monkeypatch.delenv("ETCVLA_DEBUG", raising=False)
    monkeypatch.setattr(common, "setup", lambda: None)
    monkeypatch.setattr(common.app, "run", lambda guarded, flags_parser: guarded([]))
    with pytest.raises(SystemExit) as ended:
        common.run(main)
    assert (ended.value.code, capsys.readouterr().err) == (code, said)
