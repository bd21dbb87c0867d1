"""IS THIS MACHINE FIT FOR THIS JOB, and what would it bring to mend it?"""
