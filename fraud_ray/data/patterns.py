"""What makes a row of the synthetic world fraud: merchant categories, five fraud patterns, and their exact probability.

The probability is a function of the five features alone, so that no model of them can know more than it does: with it
as the score, average precision and F1 are the best possible. Its steps are smooth, wider than what a network on
standardised features can tell apart, and none of its five products of conditions is visible to a linear model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Category:
    """Merchants of one category.

    share: of all purchases; median_amount: in currency units; spread: standard deviation of the logarithm of the
    amounts; online_share: of its purchases that are made over the network.
    """

    share: float
    median_amount: float
    spread: float
    online_share: float


CATEGORIES = {
    "grocery": Category(0.22, 30, 0.60, 0.05),
    "restaurant": Category(0.16, 24, 0.55, 0.05),
    "fuel": Category(0.10, 48, 0.40, 0.00),
    "pharmacy": Category(0.07, 16, 0.60, 0.20),
    "clothing": Category(0.08, 55, 0.65, 0.40),
    "household": Category(0.07, 70, 0.70, 0.35),
    "entertainment": Category(0.07, 32, 0.60, 0.60),
    "digital_goods": Category(0.07, 13, 0.75, 1.00),
    "electronics": Category(0.04, 160, 0.75, 0.50),
    "travel": Category(0.04, 300, 0.75, 0.70),
    "gift_cards": Category(0.04, 60, 0.80, 0.50),
    "money_transfer": Category(0.04, 130, 0.85, 1.00),
}
NAMES = tuple(CATEGORIES)
SHARES = np.array([c.share for c in CATEGORIES.values()])
LOG_MEDIANS = np.log([c.median_amount for c in CATEGORIES.values()])
SPREADS = np.array([c.spread for c in CATEGORIES.values()])
ONLINE_SHARES = np.array([c.online_share for c in CATEGORIES.values()])

TRAVEL = NAMES.index("travel")
CASH_LIKE = np.isin(NAMES, ("gift_cards", "money_transfer"))
TESTING_GROUNDS = np.isin(NAMES, ("digital_goods", "entertainment", "pharmacy"))
LIMITS = (500.0, 1000.0)  # currency units, from which a bank asks for more than a signature

FLOOR, CEILING = 0.0002, 0.98


def fraud_probability(amount: Floats, category: Ints, gap: Floats, deviation: Floats, known_device: Booleans) -> Floats:
    """The probability that a row is fraud, (rows,), from its features, each (rows,).

    Amounts above 0 in currency units, categories as positions in NAMES, time since the last transaction in seconds with
    NaN for a card's first, deviation in km, whether the device is known.
    A pattern's risk, 0 to 1, is a product of smooth steps. FLOOR where every risk is 0, CEILING where one is 1.
    """
    log_amount = np.log(amount)
    surprise = (log_amount - LOG_MEDIANS[category]) / SPREADS[category]  # spreads above the category's median
    is_dear = _step((surprise - 1.7) / 0.22)
    is_first = np.isnan(gap)
    follows_soon = _step((np.log(400) - np.log1p(np.where(is_first, np.inf, gap))) / 0.30)
    is_far = _step((np.log1p(deviation) - np.log(100)) / 0.30)
    is_tiny = _step((np.log(4) - log_amount) / 0.20)
    is_just_under = sum(_step((amount / at - 0.83) / 0.02) * _step((1.015 - amount / at) / 0.01) for at in LIMITS)
    risks = (
        follows_soon * is_dear,  # a burst on a stolen card
        ~known_device * is_far * (category != TRAVEL),  # an unknown device far from home; travellers use such
        CASH_LIKE[category] * is_just_under,  # as good as cash, just under a limit
        TESTING_GROUNDS[category] * ~known_device * is_tiny,  # leaked cards, tested at a compromised merchant
        is_first * is_dear,  # a new card, intercepted
    )
    innocent = np.ones(len(amount))
    for risk in risks:
        innocent *= 1 - risk
    return FLOOR + (CEILING - FLOOR) * (1 - innocent)


def _step(x: Floats) -> Floats:
    """0 far below 0, 1 far above, smooth between: the logistic function."""
    return 0.5 * (1 + np.tanh(0.5 * x))
