"""Collect the items to embed: folders, file lists, manifests, webdataset tars, stdin."""

from bindsearch.listing.collect import Listing, collect
from bindsearch.listing.items import BrokenItem, FusedItem, Part, parse_fusion

__all__ = ["BrokenItem", "FusedItem", "Listing", "Part", "collect", "parse_fusion"]
