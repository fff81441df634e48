"""The conformance suite, run on every family, and on models that are broken on purpose."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save

from featurestore.events import WORDS
from featurestore.features import FEATURES, STATIC
from featurestore.settings import FeatureSettings
from featurestore.step import TOKENS
from scoring import checks, serving
from scoring.checks import Sample
from scoring.errors import GenerationError
from scoring.generation import Generation, Manifest, build, prior
from scoring.inputs import SOCIAL_NAMES, Inputs
from scoring.interests import INTEREST_NAMES, Directions
from scoring.interface import Floats, Prediction
from scoring.settings import ModelSettings, TrainingSettings
from scoring.social import FILE as NEIGHBOURS
from scoring.social import NEAR_NAMES, Table
from scoring.training.columns import FOLD, Columns
from scoring.zoo import FAMILIES, NETS, blend, gbm, graph, linear, polynomial, svr, two_part
from scoring.zoo.two_part import Labels

NAMES = [feature.name for feature in FEATURES]
DAY_S = 86_400
SAMPLE = Sample.drawn(40, 5, len(NAMES), len(TOKENS))
WIDE = (*NAMES, *SOCIAL_NAMES, *INTEREST_NAMES, *NEAR_NAMES)


def made_prior() -> Generation:
    return prior(ModelSettings())


def few() -> tuple[Manifest, npt.NDArray[np.bool_], Floats, Labels]:
    """What the two-part families are fitted to: 500 rows, one column constant."""
    rng = np.random.default_rng(0)
    features = rng.lognormal(0, 1, (500, len(NAMES))).astype(np.float32)
    features[:, 3] = 1.0
    active = rng.random((500, 3)) < 0.3
    value = np.where(active, rng.lognormal(2, 1, (500, 3)), 0.0)
    manifest = Manifest(
        family="linear",
        horizons_s=(7 * DAY_S, 30 * DAY_S, 90 * DAY_S),
        calibration={"slope": 0.8, "shift": [0.0, 0.1, 0.1], "level": [0.9, 1.0, 1.2]},
    )
    keep = two_part.varies(features)
    return manifest, keep, features[:, keep], Labels(value, active, np.ones((500, 3), bool))


def of_matrix(family: str, fit: Callable[[Floats, Labels], dict[str, Floats]]) -> Generation:
    manifest, keep, x, labels = few()
    named = manifest.model_copy(update={"family": family})
    return two_part.generation(named, keep, fit(x, labels))


def made_linear() -> Generation:
    return of_matrix("linear", linear.fit)


def made_graph() -> Generation:
    manifest, keep, x, labels = few()
    more = np.random.default_rng(1).lognormal(0, 1, (len(x), len(WIDE) - len(NAMES)))
    x = np.concatenate([x, more.astype(np.float32)], axis=1)
    keep = np.concatenate([keep, np.ones(more.shape[1], bool)])
    named = manifest.model_copy(update={"family": "graph"})
    return graph.generation(named, every_column(), keep, graph.fit(x, labels))


def every_column() -> Columns:
    """Edges, interests and neighbours too."""
    table = Table.of(["ada", "bo"], np.ones((2, len(NEAR_NAMES)), np.float32), 5)
    return Columns(WIDE, Directions.of(np.eye(WORDS, dtype=np.float32)), table)


def made_polynomial() -> Generation:
    names = two_part.named(few()[1])
    return of_matrix("polynomial", lambda x, labels: polynomial.fit(x, names, labels))


def made_svr() -> Generation:
    return of_matrix("svr", svr.fit)


def made_svr_rff() -> Generation:
    return of_matrix("svr_rff", lambda x, labels: svr.fit(x, labels, fourier=64))


def made_blend() -> Generation:
    return blend.generation([made_linear(), made_svr_rff()])


def made_wide_blend() -> Generation:
    """Of members that read unlike many columns."""
    return blend.generation([made_linear(), made_net("mingru", every_column())(), made_graph()])


def made_gbm() -> Generation:
    pytest.importorskip("lightgbm", reason="training needs the extra `train`")
    manifest, keep, x, labels = few()
    named = manifest.model_copy(update={"family": "gbm"})
    return gbm.generation(named, keep, gbm.fit(x, labels, np.arange(500) % 5 == 0, rounds=30))


def made_net(family: str, columns: Columns = FOLD) -> Callable[[], Generation]:
    def made() -> Generation:
        torch = pytest.importorskip("torch", reason="training needs the extra `train`")
        from scoring.generation import build
        from scoring.training import families
        from scoring.training.losses import form
        from scoring.zoo.nets import Frame, Scaling

        torch.manual_seed(0)
        names = columns.names
        scale = np.ones(len(names), np.float32)
        scale[3] = 0  # constant in training
        features = Scaling(np.zeros(len(names), np.float32), scale)
        tokens = Scaling(np.zeros(len(TOKENS), np.float32), np.ones(len(TOKENS), np.float32))
        how = families.resolved(TrainingSettings(family=family, width=8, window=3))
        offset = NAMES.index("log_mean_order_value")
        frame = Frame(tokens, features, 3, offset, static=STATIC, form=form(how.loss))
        module = families.family(family)
        net = module.new(frame, how)
        read = net.feature_scale.numpy() > 0
        manifest = Manifest(
            family=family,
            horizons_s=(7 * DAY_S, 30 * DAY_S, 90 * DAY_S),
            features=names,
            tokens=TOKENS,
            trained_features=tuple(n for n, r in zip(names, read, strict=True) if r),
        )
        return build(manifest, {**module.export(net), **columns.files()})

    return made


MAKERS: dict[str, Callable[[], Generation]] = {
    "prior": made_prior,
    "blend": made_blend,
    "gbm": made_gbm,
    "linear": made_linear,
    "graph": made_graph,
    "polynomial": made_polynomial,
    "svr": made_svr,
    "svr_rff": made_svr_rff,
    **{family: made_net(family) for family in NETS},
}


def unseen(generation: Generation) -> npt.NDArray[np.intp]:
    return checks.untrained(generation, generation.manifest.features or NAMES)


def test_every_family_is_held_to_the_suite() -> None:
    assert set(MAKERS) == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(set(MAKERS) - {"prior"}))
def test_a_generation_without_its_arrays_is_refused_by_name(family: str) -> None:
    made = MAKERS[family]()
    arrays = [name for name in made.manifest.sha256 if name.endswith("safetensors")]
    kept = {name: data for name, data in made.files.items() if name in made.manifest.sha256}
    # A net on features alone has its graph and no arrays.
    bare = {**kept, **dict.fromkeys(arrays, save({}))} if arrays else {}
    with pytest.raises(GenerationError):
        build(made.manifest, bare)


@pytest.mark.parametrize("family", ["polynomial", "svr_rff"])
def test_a_sum_of_many_weights_does_not_depend_on_the_batch(family: str) -> None:
    """As a log may give them: of Online Retail one in four drawn samples told."""
    made = MAKERS[family]()
    arrays = {**serving.weights(made.files[two_part.FILE])}
    arrays["weights"] = arrays["weights"] * np.float32(8)
    steep = build(made.manifest, {two_part.FILE: save(arrays)})
    for seed in range(10):
        sample = Sample.drawn(64, 3, len(NAMES), len(TOKENS), seed)
        assert checks.check(steep, sample, unseen(steep)) == [], seed


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_family_keeps_every_promise(family: str) -> None:
    generation = MAKERS[family]()
    assert generation.manifest.family == family
    assert len(unseen(generation)), "nothing would be checked of unseen features"
    width = len(generation.manifest.features or NAMES)
    sample = Sample.drawn(40, 5, width, len(TOKENS))
    assert checks.check(generation, sample, unseen(generation)) == []


READS_ALL = [name for name in NETS if name != "mlp"]  # which reads four columns by definition


@pytest.mark.parametrize("family", [*READS_ALL, "blend"])
def test_a_family_that_reads_every_column_keeps_every_promise_and_carries_what_it_needs(
    family: str,
) -> None:
    made = made_wide_blend() if family == "blend" else made_net(family, every_column())()
    width = len(made.manifest.features)
    assert width == len(WIDE)
    assert checks.check(made, Sample.drawn(40, 5, width, len(TOKENS)), unseen(made)) == []
    for folded in (FeatureSettings(), FeatureSettings(social=True)):
        with pytest.raises(GenerationError, match="reads what is not folded"):
            Inputs(made.manifest, made.files, folded)
    Inputs(made.manifest, made.files, FeatureSettings(social=True, interests=True))
    bare = {name: data for name, data in made.files.items() if name != NEIGHBOURS}
    with pytest.raises(GenerationError, match=f"lacks {NEIGHBOURS}"):
        Inputs(made.manifest, bare, FeatureSettings(social=True, interests=True))


class Broken:
    """A model around a good one that breaks one promise."""

    def __init__(self, inner: Generation, how: str) -> None:
        self._inner, self._how = inner.model, how
        self.carry_size = 2 if how in ("order of users", "input") else 0
        self.horizons_s = inner.model.horizons_s

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        if self._how == "order of users":
            return carries + np.float32(len(rows) ** 2)
        if self._how == "input":
            carries += 1
            return carries
        return carries.copy()

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        made = self._inner.predict(carries[:, :0], features)
        match self._how:
            case "horizons":
                return replace(made, expected=made.expected[..., ::-1])
            case "quantiles":
                return replace(made, p50=made.p90 + 1)
            case "probability":
                return replace(made, p_active=made.p_active * 5)
            case "overflow":
                huge = np.exp(4 * features.max(-1, keepdims=True))
                return replace(made, expected=made.expected + huge)
            case "batch":
                return replace(made, expected=made.expected + np.float32(len(features)))
            case "silence":
                shift = np.float32(0 if features.shape[1] == 1 else 1)
                return replace(made, expected=made.expected + shift)
            case "unseen":
                return replace(made, expected=made.expected + np.abs(features[:, :, :1]))
            case "shape":
                return replace(made, p50=made.p50[:, :1])
        return made


@pytest.mark.parametrize(
    ("how", "claim"),
    [
        ("horizons", "a longer horizon has less expected"),
        ("quantiles", "p50 is above p90"),
        ("probability", "p_active is above 1"),
        ("overflow", "expected is not finite for a spend of billions"),
        ("batch", "a batch of 7 rows gives another value"),
        ("silence", "the first knot of silence is not the value now"),
        ("unseen", "a feature that training never saw vary moves a value"),
        ("shape", "p50 has shape"),
        ("order of users", "step by step gives another carry"),
        ("input", "the input is changed"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_suite_finds_a_model_that_breaks_a_promise(how: str, claim: str) -> None:
    good = made_prior()
    broken = replace(good, model=Broken(good, how))
    found = checks.check(broken, SAMPLE, unseen(good))
    assert any(claim in one for one in found), found
    with pytest.raises(GenerationError, match="is not published"):
        checks.require(broken, SAMPLE, unseen(good))
