def push(run, repo, **options):
    """Code for a client: publish a run, and give its commit."""
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"result = publish(Path({str(run)!r}), {repo!r}{arguments}).commit"
