package kube

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// validate says what an API server would say against a defaulted object. Fields
// that podgate has no use for are not looked at.
func validate(o API) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validateMeta(o)
	if isGateway(o) {
		return append(errs, validateGateway(o)...)
	}
	switch o := o.(type) {
	case *corev1.ConfigMap:
		errs = append(errs, validateConfigMap(o)...)
	case *corev1.Secret:
		errs = append(errs, validateSecret(o)...)
	case *corev1.Service:
		errs = append(errs, validateService(o)...)
	case *oldEndpoints:
		errs = append(errs, validateEndpoints(o)...)
	case *discoveryv1.EndpointSlice:
		errs = append(errs, validateEndpointSlice(o)...)
	case *networkingv1.NetworkPolicy:
		errs = append(errs, validateNetworkPolicy(&o.Spec, spec)...)
	case *policyv1alpha2.ClusterNetworkPolicy:
		errs = append(errs, validateClusterNetworkPolicy(o, spec)...)
	case *networkingv1.Ingress:
		errs = append(errs, validateIngress(o)...)
	case *networkingv1.IngressClass:
		if o.Spec.Controller == "" {
			errs = append(errs, field.Required(spec.Child("controller"), ""))
		} else {
			errs = append(errs, utilvalidation.IsDomainPrefixedPath(spec.Child("controller"), o.Spec.Controller)...)
		}
	case *corev1.Pod:
		errs = append(errs, validatePodSpec(&o.Spec, nil, spec)...)
	case *appsv1.Deployment:
		errs = append(errs, validateReplicas(o.Spec.Replicas, spec)...)
		errs = append(errs, validateTemplate("deployment", o.Spec.Selector, &o.Spec.Template, nil, spec)...)
		errs = append(errs, validateStrategy(&o.Spec.Strategy, spec.Child("strategy"))...)
	case *appsv1.ReplicaSet:
		errs = append(errs, validateReplicas(o.Spec.Replicas, spec)...)
		errs = append(errs, validateTemplate("replicaset", o.Spec.Selector, &o.Spec.Template, nil, spec)...)
	case *appsv1.StatefulSet:
		errs = append(errs, validateReplicas(o.Spec.Replicas, spec)...)
		errs = append(errs, validateStatefulSet(&o.Spec, spec)...)
		if last := fmt.Sprintf("%s-%d", o.Name, ordinals(o)+int(*o.Spec.Replicas)); len(last) > utilvalidation.DNS1123LabelMaxLength {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), o.Name, fmt.Sprintf("too long: with its ordinal a pod's name is a host name, of at most %d characters", utilvalidation.DNS1123LabelMaxLength)))
		}
	case *appsv1.DaemonSet:
		errs = append(errs, validateTemplate("daemonset", o.Spec.Selector, &o.Spec.Template, nil, spec)...)
		errs = append(errs, oneOf(o.Spec.UpdateStrategy.Type, spec.Child("updateStrategy", "type"),
			appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType)...)
	}
	return errs
}

// validateMeta checks names and labels. Kinds whose names become part of a DNS
// name are narrower than others.
func validateMeta(o API) field.ErrorList {
	name := validation.NameIsDNSSubdomain
	switch o.(type) {
	case *corev1.Namespace, *appsv1.StatefulSet:
		name = validation.NameIsDNSLabel
	case *corev1.Service:
		name = validation.NameIsDNS1035Label
	}
	k := kindOf(o)
	errs := validation.ValidateObjectMetaAccessor(o, !k.clusterScoped, name, field.NewPath("metadata"))
	if k.clusterScoped || o.GetNamespace() == "" {
		return errs
	}
	return append(errs, invalid(field.NewPath("metadata", "namespace"), o.GetNamespace(), validation.NameIsDNSLabel(o.GetNamespace(), false))...)
}

// validateUpdate says what may not change. served is the old object with what
// was allocated for it, nil for kinds that get nothing.
func validateUpdate(o, old, served API) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	immutable := func(a, b any, at *field.Path) {
		if !equality.Semantic.DeepEqual(a, b) {
			errs = append(errs, field.Invalid(at, a, validation.FieldImmutableErrorMsg))
		}
	}
	switch o := o.(type) {
	case *corev1.Service:
		if served != nil {
			errs = append(errs, validateServiceUpdate(o, served.(*corev1.Service))...)
		}
	case *gatewayv1.GatewayClass:
		if o.Spec.ControllerName != old.(*gatewayv1.GatewayClass).Spec.ControllerName {
			errs = append(errs, field.Invalid(spec.Child("controllerName"), o.Spec.ControllerName, "Value is immutable"))
		}
	case *corev1.Secret:
		old := old.(*corev1.Secret)
		immutable(o.Type, old.Type, field.NewPath("type"))
		if old.Immutable != nil && *old.Immutable && !equality.Semantic.DeepEqual(o.Data, old.Data) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
		}
	case *corev1.ConfigMap:
		old := old.(*corev1.ConfigMap)
		if old.Immutable != nil && *old.Immutable && !(equality.Semantic.DeepEqual(o.Data, old.Data) && equality.Semantic.DeepEqual(o.BinaryData, old.BinaryData)) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
		}
	case *discoveryv1.EndpointSlice:
		immutable(o.AddressType, old.(*discoveryv1.EndpointSlice).AddressType, field.NewPath("addressType"))
	case *networkingv1.IngressClass:
		immutable(o.Spec.Controller, old.(*networkingv1.IngressClass).Spec.Controller, spec.Child("controller"))
	case *appsv1.Deployment:
		immutable(o.Spec.Selector, old.(*appsv1.Deployment).Spec.Selector, spec.Child("selector"))
	case *appsv1.ReplicaSet:
		immutable(o.Spec.Selector, old.(*appsv1.ReplicaSet).Spec.Selector, spec.Child("selector"))
	case *appsv1.DaemonSet:
		immutable(o.Spec.Selector, old.(*appsv1.DaemonSet).Spec.Selector, spec.Child("selector"))
	case *appsv1.StatefulSet:
		a, b := o.Spec, old.(*appsv1.StatefulSet).Spec
		if !equality.Semantic.DeepEqual(a.Selector, b.Selector) || a.ServiceName != b.ServiceName || a.PodManagementPolicy != b.PodManagementPolicy {
			errs = append(errs, field.Forbidden(spec, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"))
		}
	}
	return errs
}

// invalid turns the messages of a check into errors about a field.
func invalid(at *field.Path, value any, messages []string) (errs field.ErrorList) {
	for _, m := range messages {
		errs = append(errs, field.Invalid(at, value, m))
	}
	return errs
}

// oneOf checks a field that has a fixed set of values.
func oneOf[T ~string](value T, at *field.Path, values ...T) field.ErrorList {
	switch {
	case value == "":
		return field.ErrorList{field.Required(at, "")}
	case !slices.Contains(values, value):
		return field.ErrorList{field.NotSupported(at, value, values)}
	}
	return nil
}

func validateProtocol(p corev1.Protocol, at *field.Path) field.ErrorList {
	return oneOf(p, at, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
}

func validatePortNumber(port int32, at *field.Path) field.ErrorList {
	return invalid(at, port, utilvalidation.IsValidPortNum(int(port)))
}

func validatePort(port intstr.IntOrString, at *field.Path) field.ErrorList {
	if port.Type == intstr.Int {
		return validatePortNumber(port.IntVal, at)
	}
	return invalid(at, port.StrVal, utilvalidation.IsValidPortName(port.StrVal))
}

// validateIP returns the address if it is one.
func validateIP(s string, at *field.Path) (netip.Addr, field.ErrorList) {
	if errs := utilvalidation.IsValidIPForLegacyField(at, s, true, nil); len(errs) > 0 {
		return netip.Addr{}, errs
	}
	a, _ := netip.ParseAddr(s)
	return a, nil
}

func validateOrdinaryIP(s string, at *field.Path) field.ErrorList {
	a, errs := validateIP(s, at)
	switch {
	case len(errs) > 0:
		return errs
	case a.IsUnspecified():
		return field.ErrorList{field.Invalid(at, s, fmt.Sprintf("may not be unspecified (%v)", s))}
	case a.IsLoopback():
		return field.ErrorList{field.Invalid(at, s, "may not be in the loopback range (127.0.0.0/8, ::1/128)")}
	case a.IsLinkLocalUnicast():
		return field.ErrorList{field.Invalid(at, s, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")}
	case a.IsLinkLocalMulticast():
		return field.ErrorList{field.Invalid(at, s, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")}
	}
	return nil
}

func validateSelector(s *metav1.LabelSelector, at *field.Path) field.ErrorList {
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, at)
}

func validateConfigMap(o *corev1.ConfigMap) (errs field.ErrorList) {
	size := 0
	for k, v := range o.Data {
		errs = append(errs, invalid(field.NewPath("data").Key(k), k, utilvalidation.IsConfigMapKey(k))...)
		if _, twice := o.BinaryData[k]; twice {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(k), k, "duplicate of key present in binaryData"))
		}
		size += len(v)
	}
	for k, v := range o.BinaryData {
		errs = append(errs, invalid(field.NewPath("binaryData").Key(k), k, utilvalidation.IsConfigMapKey(k))...)
		size += len(v)
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(field.NewPath(""), "", corev1.MaxSecretSize))
	}
	return errs
}

func validateSecret(o *corev1.Secret) (errs field.ErrorList) {
	data := field.NewPath("data")
	size := 0
	for k, v := range o.Data {
		errs = append(errs, invalid(data.Key(k), k, utilvalidation.IsConfigMapKey(k))...)
		size += len(v)
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(data, "", corev1.MaxSecretSize))
	}
	if o.Type == corev1.SecretTypeTLS {
		for _, k := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
			if _, ok := o.Data[k]; !ok {
				errs = append(errs, field.Required(data.Key(k), ""))
			}
		}
	}
	return errs
}

// maxReplicas is more than one machine runs, and less than a slip of the
// keyboard asks for.
const maxReplicas = 10000

func validateReplicas(n *int32, spec *field.Path) field.ErrorList {
	if *n > maxReplicas {
		return field.ErrorList{field.Invalid(spec.Child("replicas"), *n, fmt.Sprintf("podgate makes at most %d pods of one workload", maxReplicas))}
	}
	return validation.ValidateNonnegativeField(int64(*n), spec.Child("replicas"))
}

func validateStrategy(s *appsv1.DeploymentStrategy, at *field.Path) field.ErrorList {
	if errs := oneOf(s.Type, at.Child("type"), appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType); errs != nil {
		return errs
	}
	rolling := at.Child("rollingUpdate")
	if s.Type == appsv1.RecreateDeploymentStrategyType {
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Forbidden(rolling, "may not be specified when strategy `type` is 'Recreate'")}
		}
		return nil
	}
	surge, errs := validateIntOrPercent(*s.RollingUpdate.MaxSurge, rolling.Child("maxSurge"))
	unavailable, more := validateIntOrPercent(*s.RollingUpdate.MaxUnavailable, rolling.Child("maxUnavailable"))
	errs = append(errs, more...)
	if len(errs) == 0 && surge == 0 && unavailable == 0 {
		errs = append(errs, field.Invalid(rolling.Child("maxUnavailable"), s.RollingUpdate.MaxUnavailable, "may not be 0 when `maxSurge` is 0"))
	}
	return errs
}

// validateIntOrPercent returns the number, of a hundred if it is a percentage.
func validateIntOrPercent(v intstr.IntOrString, at *field.Path) (int, field.ErrorList) {
	if v.Type == intstr.String {
		if errs := invalid(at, v.StrVal, utilvalidation.IsValidPercent(v.StrVal)); errs != nil {
			return 0, errs
		}
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(&v, 100, true)
	if err != nil {
		return 0, field.ErrorList{field.Invalid(at, v, err.Error())}
	}
	return n, validation.ValidateNonnegativeField(int64(n), at)
}

func validateStatefulSet(s *appsv1.StatefulSetSpec, at *field.Path) field.ErrorList {
	var claims []string
	for _, c := range s.VolumeClaimTemplates {
		claims = append(claims, c.Name)
	}
	errs := validateTemplate("statefulset", s.Selector, &s.Template, claims, at)
	errs = append(errs, oneOf(s.PodManagementPolicy, at.Child("podManagementPolicy"), appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement)...)
	errs = append(errs, oneOf(s.UpdateStrategy.Type, at.Child("updateStrategy"), appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType)...)
	if ru := s.UpdateStrategy.RollingUpdate; ru != nil && ru.Partition != nil {
		errs = append(errs, validation.ValidateNonnegativeField(int64(*ru.Partition), at.Child("updateStrategy", "rollingUpdate", "partition"))...)
	}
	if s.Ordinals != nil {
		errs = append(errs, validation.ValidateNonnegativeField(int64(s.Ordinals.Start), at.Child("ordinals.start"))...)
	}
	if s.ServiceName != "" {
		errs = append(errs, invalid(at.Child("serviceName"), s.ServiceName, utilvalidation.IsDNS1123Subdomain(s.ServiceName))...)
	}
	return errs
}

// validateTemplate checks what workloads have in common: that the selector picks
// the pods of the template, and that these are to run for ever.
func validateTemplate(kind string, selector *metav1.LabelSelector, t *corev1.PodTemplateSpec, claims []string, spec *field.Path) (errs field.ErrorList) {
	at := spec.Child("template")
	if selector == nil {
		errs = append(errs, field.Required(spec.Child("selector"), ""))
	} else {
		errs = append(errs, validateSelector(selector, spec.Child("selector"))...)
		if reflect.DeepEqual(*selector, metav1.LabelSelector{}) {
			errs = append(errs, field.Invalid(spec.Child("selector"), selector, "empty selector is invalid for "+kind))
		} else if !Selects(selector, t.Labels) {
			errs = append(errs, field.Invalid(at.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
		}
	}
	errs = append(errs, metavalidation.ValidateLabels(t.Labels, at.Child("metadata", "labels"))...)
	errs = append(errs, validation.ValidateAnnotations(t.Annotations, at.Child("metadata", "annotations"))...)
	errs = append(errs, validatePodSpec(&t.Spec, claims, at.Child("spec"))...)
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(at.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	return errs
}
