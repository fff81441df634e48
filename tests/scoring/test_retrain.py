"""Retrain: idempotent, gated, and honest where there is too little data."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")

from featurestore.settings import FeatureSettings  # noqa: E402
from scoring.errors import RegistryUnavailable  # noqa: E402
from scoring.generation import MANIFEST, prior  # noqa: E402
from scoring.registry import FileBlobs, Registry  # noqa: E402
from scoring.retraining.retrain import RetrainReport, retrain  # noqa: E402
from scoring.retraining.scan import scan  # noqa: E402
from scoring.retraining.settings import RetrainSettings  # noqa: E402
from scoring.settings import ModelSettings, TrainingSettings  # noqa: E402
from scoring.training.examples import Log  # noqa: E402
from scoring.training.recipes import Recipe  # noqa: E402
from tests.scoring.shoplog import START_MS, batches, shop  # noqa: E402

GOOD = TrainingSettings(epochs=10, width=8, users_per_batch=128, rate=5e-3)
HARDLY = TrainingSettings(epochs=1, width=2, users_per_batch=4096, rate=1e-5)
PLAIN = RetrainSettings(cutoffs=6, draws=100, origins=0)
JUDGED = PLAIN.model_copy(update={"origins": 2})


def log(days: int = 240) -> Log:
    return batches(*shop(900, days))


async def run(
    registry: Registry,
    training: TrainingSettings = GOOD,
    days: int = 240,
    promote: bool = True,
    settings: RetrainSettings = PLAIN,
) -> RetrainReport:
    return await retrain(
        lambda: log(days),
        ModelSettings(),
        FeatureSettings(),
        ["s0"],
        registry,
        settings=settings,
        training=training,
        unit="GBP",
        promote=promote,
    )


async def test_retraining_on_the_same_log_publishes_the_same_bytes(tmp_path: Path) -> None:
    registry = Registry.at(str(tmp_path))
    first = await run(registry, settings=JUDGED)
    assert first.promoted
    assert await registry.champion() == first.generation
    again = await run(registry, settings=JUDGED)
    assert again.generation == first.generation
    assert "nothing has changed" in again.reason
    assert len(await registry.ls()) == 1
    measured = first.metrics["validation"]["d90"]
    assert measured["ngini"] > 0.4
    assert 0.5 < measured["bias"] < 2
    # What the report says of the recipe stands in the manifest, too, and how to make it anew.
    kept = (await registry.get(first.generation)).manifest
    assert kept.metrics == first.metrics
    assert Recipe.of(kept) == Recipe(GOOD, 6, 3)
    judged = first.metrics["origins"]
    assert judged["horizon"] == "d30" and judged["note"] == ""
    assert [row["as_of"][:10] for row in judged["rows"]] == ["1997-06-26", "1997-07-26"]
    assert all(row["ngini"] > 0.4 for row in judged["rows"])
    assert first.metrics["refitted_to"] > judged["rows"][-1]["as_of"]
    assert len(first.metrics["level_corrector"]["origins"]) == 2
    assert not first.metrics["level_corrector"]["kept"]  # two origins cannot help at four


def test_a_blend_of_other_members_is_another_recipe() -> None:
    recipe = Recipe(GOOD.model_copy(update={"family": "blend"}), 6, 3)
    kept = prior(ModelSettings()).manifest.model_copy(update={"recipe": recipe.as_json()})
    assert Recipe.of(kept) == recipe
    for before in ({**recipe.as_json(), "members": ["mingru", "gbm", "svr_rff"]}, {}):
        old = {k: v for k, v in (before or recipe.as_json()).items() if before or k != "members"}
        assert Recipe.of(kept.model_copy(update={"recipe": old})) is None


async def test_the_usual_retrain_has_the_champions_recipe_and_need_not_beat_itself(
    tmp_path: Path,
) -> None:
    registry = Registry.at(str(tmp_path))
    await run(registry, days=210)
    later = await run(registry)
    assert later.promoted, later.reason
    assert later.reason.startswith("same recipe as the champion's")
    against = later.metrics["against_champion"]
    assert against["how"] == "files" and against["same_recipe"]
    # Both files have learned from everybody, so everybody compares them; the figures of a file are
    # of users from whom its like has not learned.
    assert against["judged"] == "all users, 3 cut-offs"
    assert against["users"] > 2 * later.metrics["validation"]["rows"] / 3


async def test_a_worse_candidate_is_published_but_not_promoted(tmp_path: Path) -> None:
    registry = Registry.at(str(tmp_path))
    champion = await run(registry)
    refused = await run(registry, HARDLY, settings=JUDGED)
    assert not refused.promoted
    assert "refused" in refused.reason
    assert await registry.champion() == champion.generation
    assert {entry.id for entry in await registry.ls()} == {champion.generation, refused.generation}
    against = refused.metrics["against_champion"]
    assert (against["how"], against["same_recipe"]) == ("origins", False)
    assert against["ngini_low"] < -0.005 or against["level_off"] > against["level_off_champion"]
    # Both recipes at the same origins, on the same users.
    mine, theirs = refused.metrics["origins"]["rows"], against["rows"]
    shared = [[(row["as_of"], row["users"]) for row in rows] for rows in (mine, theirs)]
    assert shared[0] == shared[1] and len(shared[0]) == 2


async def test_a_better_candidate_replaces_the_champion(tmp_path: Path) -> None:
    registry = Registry.at(str(tmp_path))
    await run(registry, HARDLY)
    better = await run(registry, settings=JUDGED)
    assert better.promoted
    assert better.metrics["against_champion"]["how"] == "origins"
    assert await registry.champion() == better.generation
    assert "no worse than the champion" in better.reason


async def test_another_recipe_without_an_origin_is_judged_by_users_it_was_made_without(
    tmp_path: Path,
) -> None:
    registry = Registry.at(str(tmp_path))
    await run(registry, HARDLY)
    linear = await run(registry, TrainingSettings(family="linear"))
    against = linear.metrics["against_champion"]
    assert (against["how"], against["same_recipe"]) == ("files", False)
    assert against["judged"] == "users held out, 3 cut-offs"
    assert against["users"] < 900 / 2


class _Flaky(FileBlobs):
    """A bucket that does not answer when the first manifest is read, and then does."""

    answers = False

    async def blob(self, key: str) -> bytes | None:
        if key.endswith(MANIFEST) and not self.answers:
            self.answers = True
            raise RegistryUnavailable("no answer")
        return await super().blob(key)


async def test_a_registry_that_does_not_answer_lets_nobody_through_the_gate(
    tmp_path: Path,
) -> None:
    registry = Registry.at(str(tmp_path))
    champion = await registry.publish(prior(ModelSettings()))
    await registry.promote(champion)
    with pytest.raises(RegistryUnavailable):
        await run(Registry(_Flaky(str(tmp_path))))
    assert await registry.champion() == champion


async def test_publishing_without_promoting_leaves_the_champion(tmp_path: Path) -> None:
    registry = Registry.at(str(tmp_path))
    report = await run(registry, promote=False)
    assert not report.promoted
    assert await registry.champion() is None
    assert [entry.id for entry in await registry.ls()] == [report.generation]


async def test_a_short_log_falls_back_to_the_prior_and_says_when_labels_exist(
    tmp_path: Path,
) -> None:
    registry = Registry.at(str(tmp_path))
    report = await run(registry, days=12)
    assert report.promoted
    assert "too little data" in report.reason
    assert "labels exist of 7 days from 1997-01-18" in report.reason
    assert (await registry.get(report.generation)).manifest.family == "prior"
    # and never replaces what was trained
    trained = await run(registry)
    assert trained.promoted
    late = await run(registry, days=12)
    assert not late.promoted
    assert await registry.champion() == trained.generation


async def test_a_log_too_short_for_one_horizon_trains_nothing_and_the_champion_stays(
    tmp_path: Path,
) -> None:
    registry = Registry.at(str(tmp_path))
    champion = await run(registry)
    # The first cut-off is at day 10, so labels of 90 days are known at day 103.
    short = await run(registry, days=102)
    assert not (short.trained or short.promoted or short.passed)
    assert await registry.champion() == champion.generation
    assert (await registry.get(short.generation)).manifest.family == "prior"
    assert "there are 0 for 90 days" in short.reason
    assert short.reason.endswith("; labels exist of 90 days from 1997-04-13 on")
    enough = await run(registry, days=106, promote=False)
    assert enough.trained, enough.reason


def test_scanning_a_log_finds_its_ends() -> None:
    user, time_ms, _ = shop(900, 240)
    found = scan(log())
    assert found.events == len(user)
    assert found.users == len(set(user.tolist()))
    assert (found.start_ms, found.clock_ms) == (time_ms.min(), time_ms.max())
    assert found.start_ms >= START_MS
    assert scan([]).events == 0


@pytest.mark.long
async def test_recipes_that_differ_in_teachers_are_judged_with_their_teachers(
    tmp_path: Path,
) -> None:
    registry = Registry.at(str(tmp_path))
    one = JUDGED.model_copy(update={"origins": 1})
    taught = GOOD.model_copy(update={"teachers": ("linear",)})
    await run(registry, settings=one)
    other = await run(registry, taught, settings=one)
    against = other.metrics["against_champion"]
    assert (against["how"], against["same_recipe"]) == ("origins", False)
    # In the manifest stands the recipe without its teachers: so it costs no more than a net's fit.
    (plain,), (with_them,) = other.metrics["origins"]["rows"], against["candidate_rows"]
    assert plain == against["rows"][0]  # the champion's recipe, but for the teachers
    assert with_them["ngini"] != plain["ngini"]
