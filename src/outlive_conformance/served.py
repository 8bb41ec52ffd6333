"""Where the servers find the app."""

from outlive_conformance.application import application
from outlive_conformance.surroundings import Surroundings

app = application(Surroundings.read())
