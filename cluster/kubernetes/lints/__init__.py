"""What only the operator or the creation of pods would refuse, and what nobody refuses but no one wants."""
