package kube

import "k8s.io/apimachinery/pkg/util/validation/field"

func validate(o API) field.ErrorList { return nil }

func validateUpdate(o, old, served API) field.ErrorList { return nil }
