import numpy as np

from scoring.judging.evaluation import score
from scoring.zoo import linear, polynomial
from scoring.zoo.two_part import Labels, Scaling, varies
from tests.scoring.test_linear import ROWS


def test_a_product_of_two_features_is_learned_that_no_line_can_say() -> None:
    """Activity where both are high or both low: linear in neither."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 2)).astype(np.float32)
    active = (x[:, :1] * x[:, 1:] > 0) & (rng.random((6000, 1)) < 0.9)
    labels = Labels(active.astype(np.float64) * 5, active, np.ones_like(active))

    def apart(arrays: dict[str, np.ndarray], design: np.ndarray) -> float:
        said = design @ arrays["weights"][:, 0] + arrays["bias"][0]
        return float(said[active[:, 0]].mean() - said[~active[:, 0]].mean())

    line = linear.fit(x, labels)
    z = Scaling.of(x)(x)
    curve = polynomial.fit(x, ("orders", "since_order"), labels)
    products = z[:, curve["first"]] * z[:, curve["second"]]
    design = polynomial.expanded(z, products, curve["product_mean"], curve["product_sd"])
    assert apart(line, z) < 0.1
    assert apart(curve, design) > 2


def test_served_values_are_those_of_the_expansion_that_was_fitted() -> None:
    made = polynomial.train(ROWS)
    assert made.manifest.family == "polynomial"
    assert isinstance(made.model, polynomial.Polynomial)
    z = np.random.default_rng(0).normal(size=(5, len(made.manifest.trained_features)))
    design = made.model.design(z.astype(np.float32))
    chosen = [n for n in polynomial.CHOSEN if n in made.manifest.trained_features]
    assert design.shape[1] == z.shape[1] + len(chosen) * (len(chosen) + 1) // 2
    h = 1
    rows = ROWS.rows(ROWS.mask[:, h])
    said = score(made, rows).expected[:, 0, h]
    assert 0.75 < said.sum() / rows.value[:, h].sum() < 1.3


def test_products_of_features_that_do_not_vary_are_left_out() -> None:
    labels = Labels.of(ROWS)
    keep = varies(ROWS.features)
    some = polynomial.fit(ROWS.features[:, keep][:, :3], ("orders", "gross", "spent"), labels)
    assert len(some["first"]) == 3  # orders^2, orders x spent, spent^2
