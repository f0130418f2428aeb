from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from config_lab import NEEDS_ROOT, SOMEBODY
from hypothesis import given
from hypothesis import strategies as st

from forge_supervisor import secrets
from forge_supervisor.config import Agent
from forge_supervisor.secrets import MASK, SecretError, SecretRef

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN = "hunter2-correct-horse"  # noqa: S105


def agent(**keys: Any) -> Agent:
    return Agent.model_validate({"name": "scout", "run_as": "team", "role": "x", **keys})


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


class TestReading:
    @pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
    def test_the_line_ends_after_it_are_none_of_it(self, token: Path, end: str) -> None:
        token.write_text(f" two\nlines{end}")
        secret = secrets.read(token)
        assert (secret.value, secret.warning) == (" two\nlines", None)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"", "is empty"),
            (b"\n \n", "is empty"),
            (b"\xff\xfe", "is no UTF-8 text"),
            (b"a\0b", "holds a NUL character"),
            (b"x" * 65_537, "is larger than 65536 bytes"),
        ],
    )
    def test_what_is_no_secret_is_refused(self, token: Path, content: bytes, sentence: str) -> None:
        token.write_bytes(content)
        with pytest.raises(SecretError, match=f"^{re.escape(str(token))} {sentence}"):
            secrets.read(token)

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
    @pytest.mark.timeout(10)
    def test_what_is_no_file_holds_nobody_up(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        make(tmp_path / "odd")
        with pytest.raises(SecretError, match=r"odd (is no regular file|cannot be read)"):
            secrets.read(tmp_path / "odd")

    def test_a_missing_file_is_told_with_the_way_out(self, tmp_path: Path) -> None:
        with pytest.raises(SecretError, match="there is no such file .write the secret into it"):
            secrets.read(tmp_path / "none")

    def test_one_that_all_may_read_is_a_warning(self, token: Path) -> None:
        token.chmod(0o644)
        assert secrets.read(token).warning == f"every user of this machine may read {token} (chmod o-r {token})"

    def test_one_that_is_too_short_to_be_masked_is_a_warning(self, token: Path) -> None:
        token.write_text("abc\n")
        assert "too few to be masked" in (secrets.read(token).warning or "")

    def test_no_value_is_shown_by_accident(self, token: Path) -> None:
        assert TOKEN not in repr(secrets.read(token))


@NEEDS_ROOT
class TestWhoReads:
    def test_root_reads_what_is_roots_alone(self, roots: Path) -> None:
        (roots / "token").write_text(TOKEN)
        (roots / "token").chmod(0o600)
        found = secrets.read_as_root(str(roots / "token"))
        assert found is not None
        assert found.value == TOKEN

    def test_a_link_of_roots_to_what_is_roots_is_followed(self, roots: Path) -> None:
        (roots / "generation").mkdir()
        (roots / "generation/token").write_text(TOKEN)
        (roots / "current").symlink_to("generation")
        assert secrets.read_as_root(str(roots / "current/token")) is not None

    @pytest.mark.parametrize("theirs", ["file", "directory", "way"])
    def test_what_somebody_else_has_a_say_in_is_theirs_to_read(self, roots: Path, theirs: str) -> None:
        """An agent's user could have root read any file: by a link in the place of the secret or of a directory."""
        inner = roots / "a/b"
        inner.mkdir(parents=True)
        (inner / "token").write_text(TOKEN)
        given_away = {"file": inner / "token", "directory": inner, "way": inner.parent}[theirs]
        os.chown(given_away, SOMEBODY.pw_uid, -1)
        assert secrets.read_as_root(str(inner / "token")) is None

    def test_a_link_of_somebody_elses_is_not_followed(self, roots: Path) -> None:
        (roots / "link").symlink_to("/etc/shadow")
        os.chown(roots / "link", SOMEBODY.pw_uid, -1, follow_symlinks=False)
        assert secrets.read_as_root(str(roots / "link")) is None

    @pytest.mark.parametrize("mode", [0o1777, 0o1775, 0o1770])
    def test_a_sticky_directory_that_others_may_write_is_not_either(self, roots: Path, mode: int) -> None:
        """Trap: between two looks somebody can put a link to /etc/shadow there, and take their own file away."""
        (roots / "token").write_text(TOKEN)
        roots.chmod(mode)
        assert secrets.read_as_root(str(roots / "token")) is None

    def test_what_the_service_cannot_see_is_read_by_root_from_nowhere(self, roots: Path, tmp_path: Path) -> None:
        """Else explain and --check would find what the service does not."""
        (roots / "link").symlink_to("/root/token")
        for path in ("/root/token", "/home/anna/token", "/var/tmp/x/token", str(tmp_path / "token")):
            assert secrets.read_as_root(path) is None
        (Path("/root") / roots.name).touch()
        (roots / "link").unlink()
        (roots / "link").symlink_to(Path("/root") / roots.name)
        try:
            assert secrets.read_as_root(str(roots / "link")) is None
        finally:
            (Path("/root") / roots.name).unlink()

    def test_a_directory_that_others_may_write_is_not_roots_alone(self, roots: Path) -> None:
        (roots / "token").write_text(TOKEN)
        roots.chmod(0o777)
        assert secrets.read_as_root(str(roots / "token")) is None

    @pytest.mark.timeout(10)
    def test_links_in_a_circle_end(self, roots: Path) -> None:
        (roots / "a").symlink_to("b")
        (roots / "b").symlink_to("a")
        assert secrets.read_as_root(str(roots / "a")) is None

    def test_a_missing_one_is_told_by_who_can_see_it(self, roots: Path) -> None:
        roots.chmod(0o700)
        with pytest.raises(SecretError, match="there is no such file"):
            secrets.read_as_root(str(roots / "none"))

    def test_what_private_tmp_hides_is_left_to_the_agents_user(self) -> None:
        assert secrets.read_as_root("/tmp/no-such-secret") is None

    def test_a_home_is_the_agents_users(self) -> None:
        assert secrets.read_as_root("~/token") is None


class TestCredentials:
    @NEEDS_ROOT
    def test_for_root_only_where_nobody_else_could_have_made_them(
        self, token: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os.chown(token.parent, SOMEBODY.pw_uid, -1)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(token.parent))
        with pytest.raises(SecretError):
            secrets.read_as_root("$CREDENTIALS_DIRECTORY/token")

    def test_they_are_where_systemd_says(self, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(token.parent))
        found = secrets.read_as_root("$CREDENTIALS_DIRECTORY/token")
        assert found is not None
        assert found.value == TOKEN

    def test_without_any_the_way_out_is_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        monkeypatch.setattr(secrets, "_OF_THE_UNIT", tmp_path / "none")
        with pytest.raises(SecretError, match="LoadCredential=NAME:/path"):
            secrets.read_as_root("$CREDENTIALS_DIRECTORY/token")


class TestWhatAnAgentHas:
    SERVER = SecretRef("mcp_servers.tracker.secrets.TOKEN", "TOKEN", "/s/tracker")

    def test_its_own_and_what_its_grants_need(self) -> None:
        own = agent(secrets={"KEY": "/s/key"})
        assert list(secrets.of_agent(own, [self.SERVER])) == ["TOKEN", "KEY"]
        assert list(secrets.conflicts(own, [self.SERVER])) == []

    def test_the_same_file_twice_is_no_conflict(self) -> None:
        assert list(secrets.conflicts(agent(secrets={"TOKEN": "/s/tracker"}), [self.SERVER])) == []

    def test_two_files_for_one_variable_are(self) -> None:
        (problem,) = secrets.conflicts(agent(secrets={"TOKEN": "/s/other"}), [self.SERVER])
        assert problem.fatal
        assert problem.key == "secrets.TOKEN"
        assert problem.text.startswith("mcp_servers.tracker.secrets.TOKEN wants another file for it")

    def test_and_so_are_a_variable_in_the_open_and_a_secret_one(self) -> None:
        (problem,) = secrets.conflicts(agent(env={"TOKEN": "x"}), [self.SERVER])
        assert (problem.key, problem.fatal) == ("env.TOKEN", True)


class TestMasking:
    def test_every_value_and_every_long_line_of_one(self) -> None:
        key = "-----BEGIN KEY-----\nabcdefgh\n-----END KEY-----"
        secret = secrets.parts([TOKEN, key, "abc"])
        assert secrets.masked(f"say {TOKEN}! abc", secret) == f"say {MASK}! abc"
        assert "abcdefgh" not in secrets.masked("screen: abcdefgh", secret)

    @pytest.mark.parametrize("length", [40, 300])
    def test_where_a_program_has_broken_it_into_lines(self, length: int) -> None:
        """Trap: capture-pane joins what tmux has wrapped, not what claude has."""
        value = "".join(chr(ord("a") + number % 26) for number in range(length))
        shown = "● it is\n  " + value[:20] + "\n  " + value[20:33] + "  \n  " + value[33:] + " and so on\n"
        left = secrets.masked(shown, secrets.parts([value]))
        assert left == f"● it is\n  {MASK} and so on\n"

    @pytest.mark.timeout(10)
    @pytest.mark.parametrize("value", [" " * 8 + "abcdefgh", "a" + " " * 40 + "bcdefghi", "ab" * 200, "a b " * 60])
    def test_no_value_and_no_text_take_long(self, value: str) -> None:
        """Trap: a pattern that matches in many ways takes for ever, and a user can choose both."""
        screens = ("\n".join([" " * 200] * 60), "\n".join([value[:-1]] * 60), "a \n" * 2000, value[:-1] + "\n" * 3000)
        for text in screens:
            secrets.masked(text + "".join(value.split()), secrets.parts([value]))

    @given(st.text(alphabet="abc", min_size=20, max_size=60), st.integers(8, 12))
    def test_what_a_cut_has_left_of_it(self, value: str, left: int) -> None:
        """Trap: the last lines of a screen can begin in the middle of it, and a long line is cut."""
        begin, end = value[:left], value[-left:]
        for text in (f"{end}\nthat was it", f"it is {begin}\nthat was it", f"it is {begin}"):
            shown = secrets.masked(text, [value])
            assert begin not in shown
            assert end not in shown

    def test_what_a_cut_has_left_of_one_that_was_broken_into_lines(self) -> None:
        value = "".join(f"{number:03}-planted-" for number in range(30))
        shown = f"{value[200:250]}\n  {value[250:300]}\n  {value[300:]}\n● and so on"
        assert secrets.masked(shown, secrets.parts([value])) == f"{MASK}\n● and so on"
        assert secrets.masked(f"it is {value[:100]}\nand so on", secrets.parts([value])) == f"it is {MASK}\nand so on"

    def test_short_lines_of_a_long_secret_are_no_secrets(self) -> None:
        assert secrets.parts(['{\n  "type": 1,\n  }\n']) == ['{\n  "type": 1,\n  }\n', '"type": 1,']
        assert len(secrets.parts(["\n".join(f"a-long-line-{number}" for number in range(5000))])) == 101

    @given(st.text(alphabet="0123456789", min_size=secrets.SHORTEST), st.text(), st.text())
    def test_whatever_is_around_it(self, value: str, before: str, after: str) -> None:
        assert value not in secrets.masked(before + value + after, secrets.parts([value]))

    @given(st.text(alphabet="ab", min_size=4, max_size=8), st.text(alphabet="ab", min_size=4, max_size=8))
    def test_one_that_holds_another_is_masked_whole(self, first: str, second: str) -> None:
        both = max(first, second, key=len)
        assert secrets.masked(both, secrets.parts([first, second])) == MASK
