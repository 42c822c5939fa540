"""Studies: grids of tasks, arms and seeds as data; what is done, running and left. Still empty."""
