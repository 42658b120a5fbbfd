"""Mixture of experts.

`router` chooses experts for each item, `capacity` gives the choices slots, `layer` sends the items to their experts and
adds up what these return, and `expert_parallel` spreads the experts over ranks with DeepSpeed's process groups.
"""
