"""How good is the model, how good would guessing be, and does it look at the image?"""
