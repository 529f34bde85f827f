from affnorm_zoo.cli.main import cli

if __name__ == "__main__":
    cli(prog_name="affnorm-zoo")
