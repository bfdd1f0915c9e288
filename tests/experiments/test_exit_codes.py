"""How scripts end: 0 when all is done, 2 for what is refused, 130 for what is stopped, with the reason in one line."""

from __future__ import annotations

import pytest

from experiments.exit_codes import exit_code
from vdm_jax.errors import UserError


@pytest.mark.parametrize(("raised", "code", "said"), [
    (None, 0, ""), (UserError("steps=0; permitted: 1 or more"), 2, "study: steps=0; permitted: 1 or more\n"),
    (KeyboardInterrupt(), 130, "study: stopped; the same command goes on\n"),
    (KeyboardInterrupt("stopped at step 3"), 130, "study: stopped at step 3\n")])
def test_a_script_ends(raised, code, said, capsys):
    def work():
        if raised is not None:
            raise raised

    assert exit_code("study", work) == code
    assert capsys.readouterr().err == said
