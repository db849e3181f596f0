"""How the losses of rows are summed: the names of `loss.form`, and a default weight."""

LOSS_FORMS = {
    "share": "a stream's weight is its share of the objective",
    "objectives": "text, FAST and flow are each a mean over the batch; their sum",
    "openpi": "the mean over rows of each row's own mean",
}

# Coefficient of the extra segments of an action row, relative to its action. They keep answers in
# use at little weight: as much as the action, they would undo a shift from answers to actions.
EXTRA_WEIGHT = 0.1
