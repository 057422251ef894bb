"""The attacks themselves, against hand computation, naive loops and laws."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_ctma.aggregators import (
    CTMA,
    NNM,
    CwMed,
    CwTM,
    GeometricMedian,
    Krum,
    Mean,
)
from flwr_ctma.attacks import (
    ALIE,
    ATTACKS,
    FAULTS,
    IPM,
    PGA,
    ROP,
    SCM,
    Adaptive,
    Alternate,
    Attack,
    Backdoor,
    Blind,
    Both,
    Camouflage,
    Drift,
    During,
    Fang,
    FilterEvasion,
    Frame,
    GaussianNoise,
    Honest,
    HybridSparse,
    InflatedWeight,
    Jitter,
    Knowledge,
    LabelFlip,
    Malformed,
    Mimic,
    MinMax,
    MinSum,
    Mirror,
    NonFinite,
    Omniscient,
    OptimalALIE,
    OptimalIPM,
    PoisonedFL,
    Replay,
    Scaling,
    Shuffle,
    SignFlip,
    Then,
    TrimEvasion,
    Zero,
    flip_labels,
    parse_attack,
)
from flwr_ctma.attacks.alie import largest_deviation
from flwr_ctma.attacks.search import maximise

OMNISCIENT = [
    IPM(),
    ALIE(),
    ALIE(z=-0.7),
    OptimalIPM().against(CTMA(GeometricMedian()), 0.3),
    OptimalALIE().against(CTMA(CwMed()), 0.3),
    Mimic(),
    MinMax(),
    MinMax(direction="unit"),
    MinMax(direction="sign"),
    MinSum(),
    MinSum(direction="unit"),
    MinSum(direction="sign"),
    Fang(),
    Shuffle(),
    Blind(ALIE()),
    Mirror(ALIE()),
    Mirror(MinMax()),
    Jitter(ALIE()),
    Camouflage(ALIE()),
    Frame(),
    Drift(ALIE(z=1.0)),
    SCM(evaluations=4).against(CTMA(CwMed()), 0.3),
    PGA(evaluations=4).against(CTMA(CwMed()), 0.3),
    Adaptive(evaluations=4, steps=1).against(CTMA(CwMed()), 0.3),
    TrimEvasion(evaluations=4, steps=1).against(CTMA(CwMed()), 0.3),
    FilterEvasion(evaluations=4, steps=1).against(CTMA(CwMed()), 0.3),
]
# They use the global models of earlier rounds: their tests are in test_history.py.
WITH_MODELS = {PoisonedFL, ROP, HybridSparse}
# Attacks that commute with a translation of all updates.
EQUIVARIANT = [
    ALIE(),
    Jitter(ALIE()),
    Camouflage(ALIE()),
    Frame(),
    Drift(ALIE(z=1.0)),
    Mimic(),
    MinMax(),
    MinSum(),
    Mirror(MinSum()),
    OptimalALIE().against(CTMA(CwMed()), 0.3),
]
F = 2

rows = hnp.arrays(
    np.float64,
    st.tuples(st.integers(3, 7), st.integers(1, 5)),
    elements=st.integers(-20, 20).map(float),
)


def rng():
    return np.random.default_rng(0)


def normal(h=7, d=50, dtype=np.float64):
    return (1 + np.random.default_rng(3).normal(size=(h, d))).astype(dtype)


def same(a, b, scale=20.0):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * scale)


def _name(attack):
    return repr(attack).replace("_Aimed", "")[:40]


every_omniscient = pytest.mark.parametrize("attack", OMNISCIENT, ids=_name)


def test_laws_cover_every_omniscient_attack():
    tried = {type(getattr(attack, "attack", attack)) for attack in OMNISCIENT}
    variants = {type(attack) for attack in OMNISCIENT if attack.inner()}
    assert variants == {Blind, Mirror, Jitter, Camouflage, Drift}
    omniscient = {k for k in ATTACKS.values() if issubclass(k, Omniscient)}
    assert omniscient == tried | variants | WITH_MODELS


@every_omniscient
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("f", [0, 1, 5])
def test_attack_has_the_shape_and_dtype_of_updates(attack, dtype, f):
    forged = attack(normal(dtype=dtype), f, rng())
    assert forged.shape == (f, 50)
    assert forged.dtype == dtype
    assert np.isfinite(forged).all()


@every_omniscient
def test_attack_does_not_write_its_input(attack):
    honest = normal()
    honest.flags.writeable = False
    before = honest.copy()
    first = attack(honest, F, rng())
    np.testing.assert_array_equal(honest, before)
    np.testing.assert_array_equal(first, attack(honest, F, rng()))


@every_omniscient
def test_attack_on_single_and_identical_rows_is_finite(attack):
    """There is no spread to hide in: no division by it either."""
    for honest in (np.full((1, 3), 2.0), np.full((4, 3), 2.0), np.zeros((4, 3))):
        assert np.isfinite(attack(honest, 1, rng())).all()


@every_omniscient
@settings(max_examples=8, deadline=None)
@given(honest=rows, scale=st.sampled_from([0.5, 8.0]))
def test_attack_scales_with_the_updates(attack, honest, scale):
    same(attack(scale * honest, F, rng()), scale * attack(honest, F, rng()), 800)


@every_omniscient
def test_integer_weights_equal_repeated_rows(attack):
    if isinstance(attack, Camouflage):
        pytest.skip("its noise depends on the number of clients")
    honest, counts = normal(h=4), [3, 1, 2, 1]
    repeated = np.repeat(honest, counts, axis=0)
    weights = np.array([*counts, 1, 1], float)
    same(attack(honest, F, rng(), weights), attack(repeated, F, rng()))


@every_omniscient
def test_rows_of_weight_zero_do_not_count(attack):
    honest = normal(h=5)
    weights = np.array([1.0, 1, 0, 1, 1, 1, 1])
    expected = attack(honest[[0, 1, 3, 4]], F, rng())
    same(attack(honest, F, rng(), weights), expected)


@every_omniscient
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((np.ones(3), 1), "honest"),
        ((np.ones((0, 3)), 1), "honest"),
        ((np.ones((3, 2), int), 1), "honest"),
        ((np.ones((3, 2)), -1), "num_malicious"),
        ((np.ones((3, 2)), 1, None, np.ones(3)), "weights"),
        ((np.ones((3, 2)), 1, None, -np.ones(4)), "weights"),
        ((np.ones((3, 2)), 1, None, np.array([0.0, 0, 0, 1])), "weights"),
    ],
)
def test_invalid_input_is_refused(attack, arguments, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should be"):
        attack(*arguments)


@every_omniscient
def test_attack_on_equal_honest_rows_raises_no_float_error(attack):
    """A spread of rounding alone, of which no root may be drawn blindly."""
    with np.errstate(invalid="raise", divide="raise"):
        for row in normal(40, 2):
            assert np.isfinite(attack(np.tile(row, (9, 1)), F, rng())).all()


@every_omniscient
@settings(max_examples=8, deadline=None)
@given(honest=rows, data=st.data())
def test_order_of_honest_rows_does_not_change_the_attack(attack, honest, data):
    if isinstance(attack, Frame):
        return  # it frames a client by its place
    honest = honest + normal(*honest.shape)  # no ties, no mean that rounds to zero
    order = data.draw(st.permutations(range(len(honest))))
    same(attack(honest, F, rng()), attack(honest[order], F, rng()))


@pytest.mark.parametrize("attack", EQUIVARIANT, ids=_name)
def test_attack_translates_with_the_updates(attack):
    honest = normal()
    same(attack(honest + 100, F, rng()), attack(honest, F, rng()) + 100, 1000)


def test_blocks_of_columns_are_all_visited():
    """The standard deviation is computed some thousand columns at a time."""
    honest = normal(5, 10_000, np.float32)
    exact = honest.astype(np.float64)
    expected = exact.mean(axis=0) - 1.5 * exact.std(axis=0)
    np.testing.assert_allclose(
        ALIE(z=1.5)(honest, 1)[0], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("n", "f", "z"),
    [
        (17, 8, 1.221),
        (17, 5, 0.431),
        (17, 3, 0.180),
        (50, 24, 1.426),  # s = 2, Φ⁻¹(24/26): the paper's §3.1 example
        (16, 1, -0.084),  # s = 8, Φ⁻¹(7/15)
    ],
)
def test_alie_factor_equals_the_paper(n, f, z):
    assert largest_deviation(n, f) == pytest.approx(z, abs=5e-4)


def test_alie_factor_is_finite_beyond_half():
    assert all(
        math.isfinite(largest_deviation(n, f)) for n in range(1, 20) for f in range(n)
    )


def test_alie_by_hand():
    honest = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    # μ = (2, 2), σ = (√(8/3), √2)
    expected = [2 - 0.5 * math.sqrt(8 / 3), 2 - 0.5 * math.sqrt(2)]
    np.testing.assert_allclose(ALIE(z=0.5)(honest, 2), [expected] * 2)
    # n = 5, f = 2: s = 1, Φ⁻¹(2/3)
    expected = [2 - 0.430727 * math.sqrt(8 / 3), 2 - 0.430727 * math.sqrt(2)]
    np.testing.assert_allclose(ALIE()(honest, 2), [expected] * 2, rtol=1e-6)


def test_blind_alie_takes_z_from_all_and_the_rest_from_the_attackers():
    malicious = np.array([[0.0], [2.0]])
    honest = np.full((3, 1), 1e6)
    sent = Blind(ALIE()).collude(Knowledge(honest, malicious, rng()))
    np.testing.assert_allclose(sent, np.full((2, 1), 1 - largest_deviation(5, 2)))
    nobody = Knowledge(honest, malicious[:0], rng())
    assert Blind(IPM()).collude(nobody).shape == (0, 1)
    weightless = Knowledge(honest, malicious, rng(), np.array([1.0, 1, 1, 0, 0]))
    np.testing.assert_array_equal(Blind(IPM()).collude(weightless), malicious)


def test_mirror_by_hand():
    # μ = (2, 2): (0, 0) is seen at (4, 4), and of IPM's −μ/2 = (−1, −1) at (5, 5).
    honest = np.array([[0.0, 0.0], [2.0, 1.0], [4.0, 5.0]])
    np.testing.assert_allclose(Mirror(Mimic(client=0))(honest, 2), [[4.0, 4.0]] * 2)
    np.testing.assert_allclose(Mirror(IPM(epsilon=0.5))(honest, 1), [[5.0, 5.0]])
    # Weights 3, 1, 0 put the mean at (0.5, 0.25).
    weights = np.array([3.0, 1.0, 0.0, 1.0])
    found = Mirror(Mimic(client=1))(honest, 1, weights=weights)
    np.testing.assert_allclose(found, [[-1.0, -0.5]])


def test_alie_mirrored_is_alie_with_the_other_sign():
    honest = normal(9, 7)
    z = largest_deviation(17, 8)
    np.testing.assert_allclose(Mirror(ALIE())(honest, 8), ALIE(z=-z)(honest, 8))
    np.testing.assert_allclose(Mirror(Mirror(ALIE()))(honest, 8), ALIE()(honest, 8))


def naive_spread_attack(honest, direction, allowed):
    """Bisection on γ, distances by loops."""
    mean = sum(honest) / len(honest)
    p = {
        "std": -np.sqrt(sum((x - mean) ** 2 for x in honest) / len(honest)),
        "unit": -mean / (np.linalg.norm(mean) or 1),
        "sign": -np.sign(mean),
    }[direction]
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        if allowed(mean + middle * p):
            low = middle
        else:
            high = middle
    return mean + low * p


def distance(a, b):
    return math.sqrt(sum((u - v) ** 2 for u, v in zip(a, b, strict=True)))


@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
@pytest.mark.parametrize("seed", range(5))
def test_minmax_and_minsum_against_a_search(direction, seed):
    honest = np.random.default_rng(seed).normal(0.3, 1, (6, 4))
    farthest = max(distance(a, b) for a, b in itertools.combinations(honest, 2))
    expected = naive_spread_attack(
        honest, direction, lambda v: max(distance(v, x) for x in honest) <= farthest
    )
    np.testing.assert_allclose(MinMax(direction)(honest, 1)[0], expected, rtol=1e-8)
    most = max(sum(distance(a, b) ** 2 for b in honest) for a in honest)
    expected = naive_spread_attack(
        honest, direction, lambda v: sum(distance(v, x) ** 2 for x in honest) <= most
    )
    np.testing.assert_allclose(MinSum(direction)(honest, 1)[0], expected, rtol=1e-8)


def test_mimic_follows_the_first_principal_component():
    for seed in range(10):
        honest = np.random.default_rng(seed).normal(size=(8, 5)) * [5, 1, 1, 1, 1]
        centred = honest - honest.mean(axis=0)
        top = np.linalg.svd(centred)[2][0]
        expected = honest[np.argmax(np.abs(centred @ top))]
        np.testing.assert_array_equal(Mimic()(honest, 3), [expected] * 3)


def test_mimic_takes_its_client_modulo_their_number():
    honest = normal(4)
    np.testing.assert_array_equal(Mimic(client=6)(honest, 1)[0], honest[2])


@settings(max_examples=50, deadline=None)
@given(honest=rows, b=st.sampled_from([1.5, 2.0, 10.0]))
def test_fang_lies_just_beyond_the_honest_on_the_wrong_side(honest, b):
    honest = honest + normal(*honest.shape)  # no mean that rounds to zero
    forged = Fang(b)(honest, 3, rng())
    for column, sent in zip(honest.T, forged.T, strict=True):
        if column.mean() > 0:
            m = column.min()
            low, high = (m / b, m) if m > 0 else (b * m, m)
        else:
            m = column.max()
            low, high = (m, m / b) if m < 0 else (m, b * m)
        assert ((low - 1e-9 <= sent) & (sent <= high + 1e-9)).all()


def test_shuffle_keeps_norm_and_signs():
    honest = normal()
    mean = honest.mean(axis=0)
    forged = Shuffle()(honest, 1, rng())[0]
    np.testing.assert_allclose(np.sort(forged), np.sort(mean))
    assert not np.allclose(forged, mean)


@pytest.mark.parametrize(
    "rule", [CwMed(), CTMA(GeometricMedian()), NNM(CwTM()), Krum(), Mean()], ids=str
)
@pytest.mark.parametrize("kind", [OptimalIPM, OptimalALIE])
def test_optimal_attacks_against_a_dense_search(rule, kind):
    """Within the range they search first, they are as good as 500 factors are."""
    honest = normal(11, 6)
    mean, std = honest.mean(axis=0), honest.std(axis=0)

    def displacement(row):
        every = np.vstack([honest, np.tile(row, (4, 1))])
        return np.linalg.norm(rule(every, f=4) - mean)

    factors = np.geomspace(1 / 64, 64, 500)
    line = (-x * mean if kind is OptimalIPM else mean - x * std for x in factors)
    best = max(displacement(row) for row in line)
    forged = kind(evaluations=40).against(rule, 4)(honest, 4)
    assert displacement(forged[0]) >= 0.995 * best


def test_optimal_attack_is_not_worse_than_a_fixed_factor():
    honest = normal(11, 30, np.float32)
    rule = CTMA(CwMed())

    def displacement(attack):
        every = np.vstack([honest, attack(honest, 5, rng())])
        return np.linalg.norm(rule(every, f=5) - honest.mean(axis=0))

    assert displacement(OptimalALIE().against(rule, 5)) > displacement(ALIE())
    assert displacement(OptimalIPM().against(rule, 5)) > displacement(IPM())


def test_optimal_attack_uses_the_weights():
    honest, weights = normal(3), np.array([1.0, 2.0, 3.0, 4.0])
    rule = CwMed()
    forged = OptimalIPM().against(rule, 0.4)(honest, 1, rng(), weights)
    moved = rule(np.vstack([honest, forged]), f=0.4, weights=weights)
    mean = np.average(honest, axis=0, weights=weights[:3])
    fixed = IPM(epsilon=0.1)(honest, 1, rng(), weights)
    less = rule(np.vstack([honest, fixed]), f=0.4, weights=weights)
    assert np.linalg.norm(moved - mean) >= np.linalg.norm(less - mean)


def test_optimal_attack_without_a_rule_is_refused():
    for attack in (OptimalALIE(), Blind(OptimalIPM())):
        with pytest.raises(ValueError, match=r"attack\.against\(rule, f\)"):
            attack(normal(), 2)


def test_maximise_finds_a_narrow_peak_beyond_the_first_powers():
    assert maximise(lambda x: -abs(math.log(x / 1000)), 40) == pytest.approx(
        1000, rel=0.01
    )
    calls = []
    maximise(lambda x: calls.append(x) or 0.0, 5)
    assert len(calls) == 5


def texts():
    """Every attack of the table at its defaults, and some with parameters."""
    held = {
        "both": "signflip, zero",
        "during": "signflip",
        "blind": "alie",
        "mirror": "alie",
        "jitter": "alie",
        "drift": "alie",
        "camouflage": "alie",
        "alternate": "signflip, zero",
    }
    for name in ATTACKS:
        yield {
            **{key: f"{key}({value})" for key, value in held.items()},
            "then": "then(signflip, zero, start=3)",
        }.get(name, name)
    yield from (f"malformed(fault={fault})" for fault in FAULTS)
    yield "during(both(labelflip(layer=model.fc), inflatedweight(factor=-2.0)), stop=9)"
    yield "alie(z=1.2)"
    yield "mimic(client=2)"
    yield "blind(minmax(direction=unit))"
    yield "nonfinite(value=-inf, share=0.5)"
    yield "optimalalie(evaluations=8)"


@pytest.mark.parametrize("text", list(texts()))
def test_spelling_is_read_back(text):
    attack = parse_attack(text)
    assert isinstance(attack, Attack)
    assert parse_attack(str(attack)) == attack
    assert (
        eval(repr(attack), dict(globals(), **{k.__name__: k for k in ATTACKS.values()}))
        == attack
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("alei", "Did you mean `alie`"),
        ("malformed(fault=rong)", "one of cancelling-weight"),
        ("signflip(factor=2)", "has no parameter `factor`"),
        ("both(alie, signflip)", "that a client can mount alone"),
        ("both(signflip, during(ipm))", "that a client can mount alone"),
        ("blind(signflip)", "uses what the honest clients send"),
        ("mirror(signflip)", "uses what the honest clients send"),
        ("mirror(blind(alie))", r"`blind\(mirror"),
        ("mirror(optimalalie)", "is not the best on the other"),
        ("during(signflip, start=5, stop=5)", "after start = 5"),
        ("then(signflip, zero)", "needs start"),
        ("noise(std=-1)", "0 or more"),
        ("minmax(direction=up)", "one of std, unit, sign"),
        ("mimic(client=-1)", "0 or more"),
        ("fang(b=1)", "larger than 1"),
        ("replay(delay=0)", "at least 1"),
        ("nonfinite(value=7)", "str"),
        ("nonfinite(share=2)", r"in \[0, 1\]"),
        ("backdoor(size=0)", "at least 1"),
        ("optimalipm(evaluations=0)", "at least 1"),
        ("dba(part=4)", "0 to 3"),
        ("dba(gap=-1)", "0 or more"),
        ("tabularbackdoor(columns=0)", "at least 1"),
        ("edgecase(share=2)", r"in \[0, 1\]"),
        ("semanticflip(source=-1)", "a class, 0 or more"),
        ("neurotoxin(share=0)", r"in \(0, 1\]"),
        ("project(radius=0)", "larger than 0"),
        ("project(norm=l1)", "l2 or linf"),
        ("during(signflip, probability=2)", r"in \[0, 1\]"),
        ("alternate(signflip, zero, period=0)", "at least 1"),
        ("drift(alie, rounds=0)", "at least 1"),
        ("jitter(alie, scale=-1)", "0 or more"),
        ("jitter(signflip)", "uses what the honest clients send"),
        ("camouflage(alie, lean=0)", r"in \(0, 1\]"),
        ("frame(client=-1)", "0 or more"),
        ("frame(lean=2)", r"in \[0, 1\]"),
        ("adaptive(steps=0)", "at least 1"),
        ("adaptive(objective=up)", "distance or descent"),
        ("poisonedfl(scale=0)", "larger than 0"),
        ("poisonedfl(period=0)", "at least 1"),
        ("rop(z=0)", "larger than 0"),
        ("rop(relocation=2)", r"in \[0, 1\]"),
        ("sparse(share=2)", r"in \[0, 1\]"),
    ],
)
def test_wrong_spelling_is_refused_in_one_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        parse_attack(text)
    assert str(error.value).startswith("Parameter `attack` should be")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "name", "kind"),
    [
        (lambda: IPM("0.5"), "epsilon", "float"),
        (lambda: During("signflip"), "attack", "Attack"),
        (lambda: Both("labelflip", Scaling()), "first", "Attack"),
        (lambda: Then(SignFlip(), Zero(), "3"), "start", "int"),
        (lambda: ALIE(z="1"), "z", "float or NoneType"),
        (lambda: Mimic("0"), "client", "int or NoneType"),
        (lambda: InflatedWeight("3"), "factor", "float"),
        (lambda: OptimalALIE(2.5), "evaluations", "int"),
    ],
)
def test_parameter_of_wrong_type_is_refused(build, name, kind):
    with pytest.raises(ValueError, match=f"`{name}` should be of type {kind}. Found"):
        build()


def test_schedules_nest():
    attack = Then(
        During(SignFlip(), start=2), Then(Scaling(), Honest(), start=6), start=4
    )
    found = [str(attack.at(r, rng())) for r in range(1, 8)]
    assert found == ["none", *["signflip"] * 2, *["scaling"] * 2, *["none"] * 2]
    turns = Alternate(SignFlip(), Then(Zero(), Honest(), start=5), period=2)
    found = [str(turns.at(r, rng())) for r in range(1, 8)]
    assert found == [*["signflip"] * 2, *["zero"] * 2, *["signflip"] * 2, "none"]
    sleeper = During(Alternate(SignFlip(), Honest()), start=3, stop=6)
    found = [str(sleeper.at(r, rng())) for r in range(1, 8)]
    assert found == ["none", "none", "signflip", "none", "signflip", "none", "none"]
    both = Both(During(SignFlip(), stop=2), Replay())
    assert str(both.at(2, rng())) == "both(none, replay)"


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (GaussianNoise(std=0.0, mean=-2.0), -2.0),
        (NonFinite("inf"), np.inf),
        (Scaling(-3.0), -3.0),
    ],
)
def test_attack_corrupts_an_update_as_by_hand(attack, expected):
    np.testing.assert_array_equal(
        attack.corrupt(np.ones((2, 2)), rng()), np.full((2, 2), expected)
    )


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (0.25, 25), (1.0, 100)])
def test_nonfinite_spoils_its_share_of_numbers(share, count):
    spoilt = NonFinite(share=share).corrupt(np.ones((10, 10)), rng())
    assert np.isnan(spoilt).sum() == count


def test_noise_is_independent_for_each_array():
    generator = rng()
    draws = [GaussianNoise().corrupt(np.zeros(5), generator) for _ in range(2)]
    assert not np.isclose(*draws).any()


@pytest.mark.parametrize(
    ("shapes", "head"),
    [
        # PyTorch, with and without bias, with a buffer after it
        (
            {"a.weight": (9, 4), "fc.weight": (3, 9), "fc.bias": (3,)},
            {"fc.weight": 0, "fc.bias": 0},
        ),
        ({"norm.bias": (9,), "fc.weight": (3, 9)}, {"fc.weight": 0}),
        (
            {"fc.weight": (3, 3), "fc.bias": (3,), "n": ()},
            {"fc.weight": 0, "fc.bias": 0},
        ),
        ({"fc.weight": (3, 8, 1, 1), "fc.bias": (3,)}, {"fc.weight": 0, "fc.bias": 0}),
        # Keras, and lists of arrays: kernel (in, classes), then bias
        ({"0": (4, 9), "1": (9,), "2": (9, 3), "3": (3,)}, {"2": 1, "3": 0}),
        ({"0": (9,), "1": (3, 9)}, {"1": 0}),
        # Flax: bias first, by name
        (
            {"head.bias": (3,), "head.kernel": (9, 3)},
            {"head.kernel": 1, "head.bias": 0},
        ),
    ],
)
def test_last_layer_is_found(shapes, head):
    assert LabelFlip().head(shapes) == head


def test_last_layer_can_be_named():
    shapes = {"fc.weight": (3, 9), "fc.bias": (3,), "bn.weight": (5,), "bn.bias": (5,)}
    with pytest.raises(ValueError, match="beginning of the names of the last layer"):
        LabelFlip().head(shapes)
    assert LabelFlip("fc").head(shapes) == {"fc.weight": 0, "fc.bias": 0}
    shapes = {"fc_1.weight": (3, 9), "fc_1.bias": (3,), "n": (5,)}
    named = parse_attack("labelflip(layer=fc_1)")
    assert named.head(shapes) == {"fc_1.weight": 0, "fc_1.bias": 0}


def test_flip_labels_mirrors_classes():
    np.testing.assert_array_equal(flip_labels(np.array([0, 1, 2]), 3), [2, 1, 0])
    assert flip_labels(2, num_classes=10) == 7


def images_of(kind, shape):
    images, labels = np.zeros(shape), np.arange(shape[0])
    if kind == "numpy":
        return images, labels
    torch = pytest.importorskip("torch")
    return torch.from_numpy(images), torch.from_numpy(labels)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(8, 5, 5), (8, 3, 5, 5)])
def test_backdoor_stamps_and_relabels_its_share(kind, shape):
    images, labels = images_of(kind, shape)
    attack = Backdoor(target=9, size=2, value=0.5, share=0.25)
    poisoned, classes = attack.poison(images, labels, rng())
    assert type(poisoned) is type(images)
    assert not np.asarray(images).any()
    chosen = np.asarray(poisoned).reshape(8, -1).any(axis=1)
    assert chosen.sum() == 2
    expected = np.where(chosen, 9, np.arange(8))
    np.testing.assert_array_equal(np.asarray(classes), expected)
    corner = np.zeros(shape)
    corner[..., -2:, -2:] = 0.5
    np.testing.assert_array_equal(np.asarray(attack.stamp(images)), corner)
    np.testing.assert_array_equal(np.asarray(poisoned)[chosen], corner[chosen])


def test_backdoor_success_rate_leaves_out_the_target_itself():
    rate = Backdoor(target=1).success_rate(
        np.array([1, 1, 0, 2]), np.array([1, 0, 0, 2])
    )
    assert rate == pytest.approx(1 / 3)


def test_malformed_knows_every_row_of_the_fault_table():
    assert len(set(FAULTS)) == len(FAULTS) == 31
    assert all(Malformed(fault).fault == fault for fault in FAULTS)
