"""Layout seeds. Demonstrations and evaluations use disjoint ranges of seeds."""

from etcvla.errors import UserError

EVAL_SEED_BASE = 1_000_000_000
_RETRY_STRIDE = 1_000_000


def demo_seed(episode: int, attempt: int = 0) -> int:
    """Return the layout seed of a demonstration.

    Raises UserError outside the range of demonstrations.
    """
    max_attempts = EVAL_SEED_BASE // _RETRY_STRIDE
    if not 0 <= episode < _RETRY_STRIDE or not 0 <= attempt < max_attempts:
        raise UserError(
            f"episode {episode} must be below {_RETRY_STRIDE} and attempt {attempt} below "
            f"{max_attempts}"
        )
    return attempt * _RETRY_STRIDE + episode


def eval_seed(trial: int) -> int:
    """Return the layout seed of an evaluation trial."""
    return EVAL_SEED_BASE + trial
