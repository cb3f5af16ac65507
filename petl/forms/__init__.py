"""The functional forms of a change of the hidden states."""
