"""What tokens cost, by whoever says so last; what nobody says is not known, and never nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from forge_supervisor.config import ConfigError
from forge_supervisor.spend import prices
from forge_supervisor.spend.prices import UNKNOWN, Prices, Tokens

if TYPE_CHECKING:
    from pathlib import Path

OWN = """
date = 2027-01-01
source = "our contract"
[[prices]]
models = ["claude-opus-5-5", "local-*"]
input = 1
output = 2.5
cache_read = 0
cache_write_5m = 0
cache_write_1h = 0
"""
MILLION = Tokens(1_000_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000)


@pytest.fixture
def packaged() -> Prices:
    return prices.load(None, uid=os.geteuid())


def own(tmp_path: Path, text: str = OWN) -> Path:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    file.chmod(0o600)
    return file


def cost(listed: Prices, model: str, tokens: Tokens = MILLION) -> float | None:
    return listed.cost(listed.tier(model, tokens.prompt), tokens)


@pytest.mark.parametrize(
    ("model", "dollars"),
    [
        ("claude-opus-5-5", 4 + 20 + 0.2 + 5 + 8),
        ("claude-opus-5-5/fast", 8 + 40 + 0.4 + 10 + 16),
        ("claude-opus-4-1-20250805", 15 + 75 + 1.5 + 18.75 + 30),
        ("us.anthropic.claude-opus-4-5-20251101-v1:0", 5 + 25 + 0.5 + 6.25 + 10),
        ("claude-sonnet-4-5@20250929", 3 + 15 + 0.3 + 3.75 + 6),
        ("claude-sonnet-4-20250514", 3 + 15 + 0.3 + 3.75 + 6),
        ("claude-sonnet-4-6[1m]", 3 + 15 + 0.3 + 3.75 + 6),
        ("claude-haiku-5-5", 0.5 + 2.5 + 0.05 + 0.625 + 1),
    ],
)
def test_a_model_has_its_price_by_whatever_name(packaged: Prices, model: str, dollars: float) -> None:
    assert cost(packaged, model) == pytest.approx(dollars)


@pytest.mark.parametrize(
    "model", ["claude-opus-9", "claude-opus-5-6", "claude-sonnet-5/fast", "gpt-5", "", "x" * 256, "claude-"]
)
def test_of_a_model_that_nobody_tells_of_no_price_is_known(packaged: Prices, model: str) -> None:
    assert packaged.tier(model, 1) == UNKNOWN
    assert cost(packaged, model) is None


def test_a_longer_prompt_may_have_another_price(packaged: Prices) -> None:
    assert cost(packaged, "claude-haiku-5-5", Tokens(input=100_000)) == pytest.approx(0.01)
    assert cost(packaged, "claude-haiku-5-5", Tokens(input=100_000, cache_read=1)) == pytest.approx(0.05, abs=1e-4)


def test_the_operators_prices_go_before_the_packages(tmp_path: Path) -> None:
    listed = prices.load(own(tmp_path), uid=os.geteuid())
    assert cost(listed, "claude-opus-5-5") == pytest.approx(3.5)
    assert cost(listed, "local-llama", Tokens(output=2_000_000)) == pytest.approx(5.0)
    assert cost(listed, "claude-opus-4-8") == pytest.approx(46.75)


def test_without_a_file_of_the_operators_the_packages_prices_count(tmp_path: Path) -> None:
    assert cost(prices.load(tmp_path / "prices.toml", uid=os.geteuid()), "claude-opus-5-5") == pytest.approx(37.2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prices = [", "not valid TOML"),
        (OWN.replace("input = 1", "input = -1"), "prices.0.input"),
        (OWN.replace("input = 1", "input = nan"), "prices.0.input"),
        (OWN.replace("input = 1", ""), "prices.0.input"),
        (OWN.replace("output", "outputs"), "prices.0.outputs"),
        (OWN.replace("date = 2027-01-01", ""), "date"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        prices.load(own(tmp_path, text), uid=os.geteuid())


def test_prices_that_others_may_write_are_not_believed(tmp_path: Path) -> None:
    file = own(tmp_path)
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="everybody may write it"):
        prices.load(file, uid=os.geteuid())
