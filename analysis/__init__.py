"""Reads what training recorded and says what it shows; never trains.

``readers`` turn folders into arms, ``collapse`` measures every seed, ``intervals`` says how sure
the numbers are, ``comparison`` puts arms side by side, ``verdict`` words it, ``figures`` draws it
and ``report`` writes it down.
"""
