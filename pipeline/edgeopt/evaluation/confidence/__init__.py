"""Confidence of accuracy and of its drops: intervals, tests, verdicts, numbers of samples.

Two models are compared on the same samples. Binary scores (0 or 1) are compared with an exact test for the
difference of paired proportions and McNemar's exact test, other scores with Gaffke's test for the mean of
bounded values (``drop_tests``). The rate of wrong verdicts is at most 1 - confidence at every sample size;
``benchmarks/gates.py`` prints it. A mean of values without bounds has no such test (Bahadur and Savage 1956):
see ``Paired.largest_change``.

A metric of the whole set, such as mAP, is compared by the contributions of the samples, whose mean it is to
first order. They are bounded by the weight of the heaviest sample.
"""
