"""What a run, an evaluation or a comparison shows: numbers, and a page of them."""
