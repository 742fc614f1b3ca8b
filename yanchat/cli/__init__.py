"""The command line: what a person types and a program reads. One file for each command; drivers are imported late."""
