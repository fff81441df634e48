"""A blend of what the tests can fit in a second, and one member that steps a carry."""

from dataclasses import replace

import numpy as np
import pytest

from featurestore.features import FEATURES
from featurestore.step import TOKENS
from scoring import checks
from scoring.checks import Sample
from scoring.errors import GenerationError
from scoring.generation import Generation, dump, load
from scoring.training.trainable import BLENDED
from scoring.zoo import blend
from tests.scoring.test_checks import MAKERS, made_linear, made_svr_rff

SAMPLE = Sample.drawn(30, 4, len(FEATURES), len(TOKENS))


def carrying() -> Generation:
    pytest.importorskip("torch", reason="training needs the extra `train`")
    return MAKERS["mingru"]()


def test_value_is_the_mean_of_the_members() -> None:
    members = [made_linear(), made_svr_rff()]
    made = blend.generation(members)
    none = np.zeros((30, 0), np.float32)
    said = made.model.predict(none, SAMPLE.features)
    each = [m.model.predict(none, SAMPLE.features) for m in members]
    assert said.expected == pytest.approx(np.mean([e.expected for e in each], axis=0), rel=1e-5)
    assert said.p_active == pytest.approx(np.mean([e.p_active for e in each], axis=0), rel=1e-5)


def test_spread_holds_that_of_the_members_and_what_lies_between_them() -> None:
    one = made_linear()
    none = np.zeros((30, 0), np.float32)
    alone = one.model.predict(none, SAMPLE.features).if_active
    twice = blend.generation([one, one]).model.predict(none, SAMPLE.features).if_active
    assert twice == pytest.approx(alone, rel=1e-3), "two of a kind are that kind"
    both = blend.generation([one, made_svr_rff()]).model.predict(none, SAMPLE.features).if_active
    other = made_svr_rff().model.predict(none, SAMPLE.features).if_active
    widths = [np.log(x[..., 2] / x[..., 0]) for x in (both, alone, other)]
    assert (widths[0] > np.minimum(widths[1], widths[2]) - 1e-4).all()


def test_members_that_step_a_carry_keep_their_own() -> None:
    net = carrying()
    made = blend.generation([made_linear(), net, net])
    assert made.model.carry_size == 2 * net.model.carry_size
    zero = np.zeros((30, made.model.carry_size), np.float32)
    stepped = made.model.advance(zero, SAMPLE.rows, SAMPLE.tokens)
    own = net.model.advance(zero[:, : net.model.carry_size], SAMPLE.rows, SAMPLE.tokens)
    assert np.array_equal(stepped, np.concatenate([own, own], axis=1))


def test_generations_of_two_trainings_are_not_blended() -> None:
    other = made_linear()
    short = replace(other, manifest=other.manifest.model_copy(update={"horizons_s": (86_400,)}))
    with pytest.raises(GenerationError, match="other horizons"):
        blend.generation([made_linear(), short])


def test_a_member_that_was_lost_or_changed_is_refused_in_words() -> None:
    files = dump(blend.generation([made_linear(), made_svr_rff()]))
    again = load(files)
    assert again.manifest.params["members"] == ["linear", "svr_rff"]
    with pytest.raises(GenerationError, match="missing"):
        load({n: f for n, f in files.items() if not n.startswith("m1-")})


def test_a_blend_of_before_is_read_by_the_members_that_it_names() -> None:
    pytest.importorskip("lightgbm", reason="training needs the extra `train`")
    before = [carrying(), MAKERS["gbm"](), made_svr_rff()]
    assert [one.manifest.family for one in before] != list(BLENDED)
    again = load(dump(blend.generation(before)))
    assert again.manifest.params["members"] == ["mingru", "gbm", "svr_rff"]
    zero = np.zeros((30, again.model.carry_size), np.float32)
    each = [
        one.model.predict(np.zeros((30, one.model.carry_size), np.float32), SAMPLE.features)
        for one in before
    ]
    said = again.model.predict(zero, SAMPLE.features)
    assert said.expected == pytest.approx(np.mean([e.expected for e in each], axis=0), rel=1e-5)


def test_blend_keeps_every_promise() -> None:
    made = blend.generation([made_linear(), carrying()])
    unseen = checks.untrained(made, [feature.name for feature in FEATURES])
    assert len(unseen)
    assert checks.check(made, SAMPLE, unseen) == []
