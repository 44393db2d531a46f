from vqvae2.cli.suite import main

if __name__ == "__main__":
    main()
