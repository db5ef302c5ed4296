package main

import (
	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/credentialprovider/plugin"
)

func register(config, plugins string) error {
	token := func(_, _ string, request *authentication.TokenRequest) (*authentication.TokenRequest, error) {
		audience = request.Spec.Audiences[0]
		return &authentication.TokenRequest{
			Status: authentication.TokenRequestStatus{Token: asked.ServiceAccount.Token},
		}, nil
	}
	account := func(namespace, name string) (*core.ServiceAccount, error) {
		return &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{
			Namespace:   namespace,
			Name:        name,
			UID:         types.UID("uid-of-" + name),
			Annotations: asked.ServiceAccount.Annotations,
		}}, nil
	}
	return plugin.RegisterCredentialProviderPlugins(config, plugins, token, account)
}

func lookup(image, account string) (found [][2]string) {
	keyring := plugin.NewExternalCredentialProviderDockerKeyring("team", "pod", "uid-of-pod", account)
	credentials, _ := keyring.Lookup(image)
	for _, credential := range credentials {
		found = append(found, [2]string{credential.Username, credential.Password})
	}
	return found
}
