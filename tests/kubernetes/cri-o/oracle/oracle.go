// Oracle answers, by the code that CRI-O, podman, buildah and skopeo share, which credential they find in a docker config for
// an image.
//
// It reads questions from standard input, one JSON object per line, and writes one answer per line to standard output.
package main

import (
	"bufio"
	"encoding/json"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/containers/image/v5/docker/reference"
	"github.com/containers/image/v5/pkg/docker/config"
	"github.com/containers/image/v5/types"
	"github.com/sirupsen/logrus"
)

// question is about one file and one image.
type question struct {
	// Document holds the file's bytes, in base64.
	Document []byte `json:"document"`
	// Image is a name as it stands in a pod.
	Image string `json:"image"`
}

// answer holds what the lookup returns.
type answer struct {
	// Refused is the error; null without one.
	Refused *string `json:"refused"`
	// Username and Password are empty if there is no credential.
	Username string `json:"username"`
	Password string `json:"password"`
}

func main() {
	logrus.SetOutput(io.Discard)
	folder, err := os.MkdirTemp("", "oracle")
	if err != nil {
		log.Fatal(err)
	}
	err = serve(folder)
	if err := os.RemoveAll(folder); err != nil {
		log.Fatal(err)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func serve(folder string) error {
	// Without it, the lookup reads the machine's own configuration.
	registries := filepath.Join(folder, "registries.conf")
	if err := os.WriteFile(registries, nil, 0o600); err != nil {
		return err
	}
	system := &types.SystemContext{
		AuthFilePath:                filepath.Join(folder, "config.json"),
		SystemRegistriesConfPath:    registries,
		SystemRegistriesConfDirPath: filepath.Join(folder, "none"),
	}
	questions := json.NewDecoder(bufio.NewReaderSize(os.Stdin, 1<<20))
	answers := json.NewEncoder(os.Stdout)
	for {
		var asked question
		switch err := questions.Decode(&asked); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
		if err := os.WriteFile(system.AuthFilePath, asked.Document, 0o600); err != nil {
			return err
		}
		if err := answers.Encode(look(system, asked.Image)); err != nil {
			return err
		}
	}
}

func look(system *types.SystemContext, image string) answer {
	name, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return refused(err)
	}
	found, err := config.GetCredentialsForRef(system, name)
	if err != nil {
		return refused(err)
	}
	return answer{Username: found.Username, Password: found.Password}
}

func refused(err error) answer {
	message := err.Error()
	return answer{Refused: &message}
}
