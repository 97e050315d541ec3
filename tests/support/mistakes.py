"""Wrong answers to the notebooks' exercises, and a word that the checker's hint must contain.

{module of `notebooks/exercises`: [(wrong answer, word of the hint)]}
"""

MISTAKES = {
    "one_image": [
        ("P2", "stays the same"),
        ("proposal_scores", "whether, not what"),
        ("detections", "read off numbers that came before"),
        ("mask_logits", "label has long been chosen"),
        ("labels", "no field"),
    ],
}
