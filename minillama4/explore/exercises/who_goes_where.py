"""Checks for *Who goes where* (notebooks/01_moe/07_who_goes_where.ipynb)."""

import torch
from torch import Tensor

from ..checks import Check
from ..routing import effective_experts as _library_effective
from ..routing import mutual_information as _library_information


# ---------------------------------------------------------------------- effective experts
def _loads(seed: int) -> tuple[Tensor]:
    """(e,) counts of different sizes, none of them 0."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randint(1, 90, (4 + 4 * seed,), generator=draw),)


def _entropy(load: Tensor) -> Tensor:
    p = load / load.sum()
    return -(p * p.log()).sum()


def _bits(load: Tensor) -> Tensor:
    return _entropy(load) / torch.tensor(2.0).log()


def _knows_idle_experts(answer) -> bool:
    one, two = answer(torch.tensor([0, 5, 0])), answer(torch.tensor([3, 0, 3]))
    return abs(float(one) - 1) < 1e-4 and abs(float(two) - 2) < 1e-4


effective_experts = Check(
    "effective_experts",
    reference=lambda load: _library_effective(load).float(),
    inputs=_loads,
    wrong={
        "That is the entropy itself: take exp of it, and it counts experts.": _entropy,
        "You took log to base 2 and then exp: the base must be the same in both.": lambda load: (
            _bits(load).exp()
        ),
        "That is the entropy in bits: use the natural logarithm, then exp.": _bits,
        "You took 2 to the power of an entropy in nats: the base must be the same in both.": (
            lambda load: 2 ** _entropy(load)
        ),
        "The sign is missing: the entropy is minus the sum.": lambda load: (-_entropy(load)).exp(),
        "You counted the experts that have tokens, whatever their share.": lambda load: (
            (load > 0).sum().float()
        ),
        "You used the counts as they are: divide them by their sum first.": lambda load: (
            -(load * load.log()).sum()
        ).exp(),
        "You took a softmax: counts become shares when they are divided by their sum.": (
            lambda load: torch.special.entr(load.float().softmax(0)).sum().exp()
        ),
        "1 / Σ p² counts experts too, but another way: exp of the entropy is asked for.": (
            lambda load: 1 / ((load / load.sum()) ** 2).sum()
        ),
        "That is the load of the busiest expert against the mean: another measure of imbalance.": (
            lambda load: load.max() / load.float().mean()
        ),
    },
    properties={
        "Right, except when an expert has no token: 0 · ln 0 counts as 0, and computers make it "
        "nan. Leave idle experts out, or use torch.special.entr.": _knows_idle_experts
    },
    praise="Even loads give e, one expert for all gives 1, and idle experts do no harm.",
    tolerance=1e-4,
)


# ---------------------------------------------------------------------- mutual information
def _tables(seed: int) -> tuple[Tensor]:
    """(e, labels) counts, none of them 0, neither independent nor symmetric."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randint(1, 60, (3 + seed, 4), generator=draw),)


def _shares(joint: Tensor) -> tuple[Tensor, Tensor]:
    """p(x, y) and p(x) · p(y)."""
    p = joint / joint.sum()
    return p, p.sum(1, keepdim=True) * p.sum(0, keepdim=True)


def _of_shares(measure):
    return lambda joint: measure(*_shares(joint))


def _side(p: Tensor, axis: int) -> Tensor:
    one = p.sum(axis)
    return -(one * one.log()).sum()


def _unnormalised(joint: Tensor) -> Tensor:
    joint = joint.float()
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (joint * (joint / product).log()).sum()


def _divided(joint: Tensor, axis: int) -> Tensor:
    p, product = _shares(joint)
    return (p * (p / product).log()).sum() / _side(p, axis)


def _knows_empty_cells(answer) -> bool:
    value = float(answer(torch.tensor([[4, 0], [0, 4]])))
    return abs(value - 0.693147) < 1e-4


mutual_information = Check(
    "mutual_information",
    reference=lambda joint: torch.tensor(_library_information(joint)),
    inputs=_tables,
    wrong={
        "You used log2, which gives bits: nats need the natural logarithm.": _of_shares(
            lambda p, q: (p * (p / q).log2()).sum()
        ),
        "You forgot to divide the counts by their sum: p(x, y) must sum to 1.": _unnormalised,
        "That is the entropy of the pairs, H(x, y): compare p(x, y) with p(x) · p(y).": _of_shares(
            lambda p, q: -(p * p.log()).sum()
        ),
        "That is the entropy of the expert, not what it shares with the label.": _of_shares(
            lambda p, q: _side(p, 1)
        ),
        "That is the entropy of the label, not what it shares with the expert.": _of_shares(
            lambda p, q: _side(p, 0)
        ),
        "That is H(x) + H(y), without taking H(x, y) away.": _of_shares(
            lambda p, q: _side(p, 0) + _side(p, 1)
        ),
        "The sign is turned round: p(x, y) stands above, p(x) · p(y) below.": _of_shares(
            lambda p, q: -(p * (p / q).log()).sum()
        ),
        "You weighed the logarithms with p(x) · p(y): weigh them with p(x, y).": _of_shares(
            lambda p, q: (q * (p / q).log()).sum()
        ),
        "You compared with p(x) · p(y) the wrong way round: it is Σ p(x, y) ln(p(x, y) / ...).": (
            _of_shares(lambda p, q: (q * (q / p).log()).sum())
        ),
        "You summed the logarithms without weights: each counts p(x, y) times.": _of_shares(
            lambda p, q: (p / q).log().sum()
        ),
        "You took the mean over the cells: it is the sum.": _of_shares(
            lambda p, q: (p * (p / q).log()).mean()
        ),
        "You divided by the label's entropy: that is the share, nats are asked for.": (
            lambda joint: _divided(joint, 0)
        ),
        "You divided by the expert's entropy: that is a share, nats are asked for.": (
            lambda joint: _divided(joint, 1)
        ),
    },
    properties={
        "Right, except where a pair never occurs: 0 · ln 0 counts as 0, and computers make it "
        "nan. Leave empty cells out.": _knows_empty_cells
    },
    praise="It equals the library's, on tables with empty cells too.",
    tolerance=1e-4,
)


# ---------------------------------------------------------------------- who suffers
def _by_domain(seed: int) -> tuple[Tensor]:
    """(e, domains) counts, in which some domains were read much more than others."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([1, 12, 4, 30, 2])
    return (torch.randint(1, 50, (6 + seed, 5), generator=draw) * sizes,)


def _suffers(table: Tensor) -> Tensor:
    return (table / table.sum(0)).argmax(1)


suffers = Check(
    "suffers",
    reference=_suffers,
    inputs=_by_domain,
    wrong={
        "You compared counts (divided by the expert's tokens they keep their order): a domain of "
        "which more was read wins everywhere. Divide by the domain's tokens.": lambda table: (
            table.argmax(1)
        ),
        "You asked which expert each domain uses most: one answer per expert is wanted.": (
            lambda table: (table / table.sum(0)).argmax(0)
        ),
        "You took the domain that uses the expert least.": lambda table: (
            table / table.sum(0)
        ).argmin(1),
        "You divided by the expert's tokens and looked down the experts: it is the other way "
        "round, divide by the domain's tokens and look along the domains.": lambda table: (
            table / table.sum(1, keepdim=True)
        ).argmax(0),
        "You returned the shares: return the number of the domain, one per expert.": (
            lambda table: table / table.sum(0)
        ),
        "You returned how large the share is: return which domain has it.": lambda table: (
            table / table.sum(0)
        ).amax(1),
    },
    praise="Now switch the expert off, as in section 5, and see whether the prediction holds.",
)
