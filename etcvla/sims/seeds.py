"""Layout seeds: the two ranges never meet, so no evaluation layout was ever demonstrated."""

EVAL_SEED_BASE = 1_000_000_000
_RETRY_STRIDE = 1_000_000


def demo_seed(episode: int, attempt: int = 0) -> int:
    """The layout seed of a demonstration. Raises ValueError outside its range."""
    if not 0 <= episode < _RETRY_STRIDE or not 0 <= attempt < EVAL_SEED_BASE // _RETRY_STRIDE:
        raise ValueError(
            f"episode {episode} must be below {_RETRY_STRIDE} and attempt {attempt} below "
            f"{EVAL_SEED_BASE // _RETRY_STRIDE}"
        )
    return attempt * _RETRY_STRIDE + episode


def eval_seed(trial: int) -> int:
    """The layout seed of an evaluation trial."""
    return EVAL_SEED_BASE + trial
