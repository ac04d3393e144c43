"""What a run will take on chips that are not at hand: compiled ahead of time, by the compiler's word."""
