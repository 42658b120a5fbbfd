"""Which rank this process is, which other ranks there are, and how they communicate."""
