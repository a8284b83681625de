"""What a user asks for: one file, one public function each."""
