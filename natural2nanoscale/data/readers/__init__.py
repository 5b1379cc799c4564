"""Files of the field as slices: one interface (base.Source) for pictures, stacks and volumes."""
