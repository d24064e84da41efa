"""genexp: experiments in unsupervised and generative learning, from one command line."""

__version__ = "0.1.0"
