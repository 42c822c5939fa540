"""What a run is told: settings as data. Nothing here imports anything of ours."""
