"""Named sets of Meta-World tasks."""

from etcvla.sims.metaworld.tasks import DEMO_TASKS, MT10, TASKS

TASK_SETS = {"demo": DEMO_TASKS, "mt10": MT10, "mt50": tuple(TASKS)}
