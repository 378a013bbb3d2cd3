"""The packages here are run by `test_third_party.py` where they are installed, not collected from their sources."""

collect_ignore = ["kdfw-focal"]
