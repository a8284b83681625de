"""What a lesion is: shapes, places, paste and gates."""
