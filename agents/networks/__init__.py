"""The networks of a population: S of one shape, stacked along a member axis."""
